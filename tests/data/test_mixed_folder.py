"""A folder as people have it: three hundred files of every kind, from pretraining to the report."""

import json
import os

import helpers
import numpy as np
import pytest
from PIL import Image

# six programs as real processes; one worker makes the run they share
pytestmark = pytest.mark.slow

GOOD, BAD = 285, 15
RUN = ["--config=configs/mae.py:demo,data=photos", "--config.data.source=folder"]
RUN += ["--config.batch_size=64", "--config.steps=4", "--config.optimizer.schedule.warmup_steps=0"]
RUN += ["--config.method.encoder.depth=2", "--config.method.encoder.width=64"]
RUN += ["--config.method.encoder.image_size=(32,32)", "--config.data.max_bad_fraction=0.2"]
RUN += ["--config.log_every=1", "--config.eval.batch_size=64", "--config.eval.pictures.count=4"]
PNG_HEAD = b"\x89PNG\r\n\x1a\n"


def scene(i, size=(44, 36)):
    """RGB with an up and a down, so that pictures can be judged: sky, ground, a disk."""
    w, h = size
    y, x = np.mgrid[:h, :w]
    sky = np.stack([90 + 0 * x, 150 - y, 230 - 2 * y], -1)
    ground = np.stack([60 + i % 90 + 0 * x, 120 + 0 * x, 50 + x], -1)
    out = np.where((y < h * 0.6)[..., None], sky, ground)
    disk = (x - w * (0.2 + i % 7 / 10)) ** 2 + (y - h * 0.3) ** 2 < (h / 6) ** 2
    out[disk] = (250, 220, 40 + i % 60)
    return Image.fromarray(out.astype(np.uint8))


def rotated(image, path):
    """An image stored on its side, with the orientation in EXIF."""
    exif = Image.Exif()
    exif[0x0112] = 6
    image.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)


def deep(image, path):
    """16-bit gray."""
    gray = np.asarray(image.convert("L")).astype(np.uint16)
    Image.fromarray(gray * 257).save(path)


def moving(image, path):
    image.save(path, save_all=True, append_images=[Image.new("RGB", image.size)] * 2)


def linked(image, path):
    """A link to a file outside the folder."""
    there = next(p for p in path.parents if p.name == "images").parent / "elsewhere"
    there.mkdir(exist_ok=True)
    image.save(there / path.name)
    path.symlink_to(there / path.name)


KINDS = {  # name, how it is written
    "a.jpg": lambda image, path: image.save(path),
    "b.png": lambda image, path: image.save(path),
    "c.gif": lambda image, path: image.save(path),
    "d.webp": lambda image, path: image.save(path),
    "e.bmp": lambda image, path: image.save(path),
    "f.tiff": lambda image, path: image.save(path),
    "cmyk.jpeg": lambda image, path: image.convert("CMYK").save(path),
    "gray.JPG": lambda image, path: image.convert("L").save(path, "JPEG"),
    "deep.png": deep,
    "palette.png": lambda image, path: image.quantize(32).save(path),
    "alpha.png": lambda image, path: image.convert("RGBA").save(path),
    "bits.png": lambda image, path: image.convert("1").save(path),
    "sideways.jpg": rotated,
    "moving.gif": moving,
    "moving.webp": moving,
    "фото 写真 é.png": lambda image, path: image.save(path),
    "link.png": linked,
    "tiny.png": lambda image, path: image.resize((3, 2)).save(path),
    "wide.jpg": lambda image, path: image.resize((200, 20)).save(path),
}


def broken(i, path):
    """One of five ways in which a file is no image."""
    scene(i).save(path.with_suffix(".tmp"), "PNG")
    whole = path.with_suffix(".tmp").read_bytes()
    path.with_suffix(".tmp").unlink()
    path.write_bytes(
        [b"", b"these are words", whole[: len(whole) // 2], PNG_HEAD, b"\0" * 900][i % 5]
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """285 images, 15 files that only look like some, and files that are left alone."""
    root = tmp_path_factory.mktemp("mixed") / "images"
    root.mkdir()
    kinds = list(KINDS.items())
    for i in range(GOOD):
        name, write = kinds[i % len(kinds)]
        place = root if i % 3 else root / f"from {i % 4}" / "ordner"
        place.mkdir(parents=True, exist_ok=True)
        write(scene(i), place / f"{i:03} {name}")
    for i in range(BAD):
        broken(i, root / f"{300 + i} broken.{('jpg', 'png')[i % 2]}")
    (root / "notes.txt").write_text("no image")
    (root / ".hidden.png").write_bytes(b"")
    return root


@pytest.fixture(scope="module")
def pretrained(folder, tmp_path_factory):
    """A workdir, the source's bytes before, and what the run said."""
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    workdir = tmp_path_factory.mktemp("run")
    place = f"--config.data.path={folder}"
    out = helpers.run("mimjax.main", *RUN, place, f"--workdir={workdir}")
    return workdir, before, out.stdout


def listed(workdir):
    return {
        r.split("\t")[0]
        for r in os.fsdecode((workdir / "bad_files.txt").read_bytes()).split("\n")
        if r
    }


def test_the_folder_has_three_hundred_files(folder):
    names = [p.name for p in folder.rglob("*") if p.is_file() and p.suffix != ".txt"]
    assert len([name for name in names if not name.startswith(".")]) == GOOD + BAD
    assert len({name[4:] for name in names}) >= len(KINDS)


def test_pretrain(folder, pretrained):
    """Steps and evaluation meet every file, so that all bad ones are listed, and no other."""
    workdir, before, said = pretrained
    bad = {str(p) for p in folder.glob("3?? broken.*")}
    assert len(bad) == BAD
    found = listed(workdir)
    assert found == bad
    last = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 4
    assert sorted(helpers.losses(workdir)) == [1, 2, 3, 4]
    assert f"{len(found)} bad files skipped" in said
    # the source is as it was
    assert before == {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_report_shows_it(pretrained):
    workdir, _, _ = pretrained
    report = (workdir / "report.html").read_text()
    assert report.count("data:image/png;base64,") >= 1
    assert "reconstruction" in report
    picture = Image.open(workdir / "pictures/reconstruction_0000004.png")
    assert len(picture.convert("RGB").getcolors(1 << 24)) > 100


# programs that look at images, their arguments, and what each makes in the workdir
LOOKS = {
    "reconstruct": (["--count=19"], "pictures/reconstruct.png"),
    "attention": (["--count=4"], "pictures/attention.png"),
}


@pytest.mark.parametrize("program", LOOKS)
def test_look(program, folder, pretrained, tmp_path):
    """One file of each kind is looked at; a broken one among them is named and left out."""
    workdir, _, _ = pretrained
    args, made = LOOKS[program]
    some = tmp_path / "some"
    some.mkdir()
    for i in range(len(KINDS)):
        (place,) = folder.rglob(f"{i:03} *")
        (some / place.name).symlink_to(place)
    args = [program, f"--model={workdir}", f"--images={some}", *args]
    helpers.run(*args)
    assert len(Image.open(workdir / made).convert("RGB").getcolors(1 << 24)) > 100
    (some / "000 broken.png").write_bytes(b"words")
    out = helpers.run(*args, "--count=99")
    assert f"skipped 1 of {len(KINDS) + 1} files" in out.stdout
    assert "000 broken.png (unknown format)" in out.stdout


def test_features_and_a_map_of_all_that_can_be_read(folder, pretrained, tmp_path):
    workdir, _, _ = pretrained
    common = f"--model={workdir}", f"--images={folder}"
    out = helpers.run("features", *common, f"--output={tmp_path / 'f.npz'}")
    assert f"skipped {BAD} of {GOOD + BAD} files" in out.stdout
    with np.load(tmp_path / "f.npz") as found:
        assert found["mean_norm"].shape == (GOOD, 64)
        assert np.isfinite(found["mean_norm"]).all()
        names = set(found["path"].tolist())
    assert len(names) == GOOD
    assert not [name for name in names if "broken" in name]
    out = helpers.run("map", *common)
    picture = Image.open(workdir / "pictures/embedding_images_tsne.png")
    assert len(picture.convert("RGB").getcolors(1 << 24)) > 100
