"""From names to configs: which file is taken, what a config file may do wrong, arguments."""

import ast
import re

import helpers
import pytest

from mimjax.errors import ConfigError, UserCodeError
from mimjax.run import config_files
from mimjax.run.sections import arguments, find, load

ROOT = helpers.ROOT / "configs"
OWN = "from mimjax.run.sections import base, load\n"  # line 1 of the files below


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Return a function that writes a file in an empty working directory."""
    monkeypatch.chdir(tmp_path)

    def write(text, name="mine.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
        return name

    return write


# ------------------------------------------------------------------ which file
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("mae", "mae.py"),
        ("mae.py", "mae.py"),
        ("configs/mae.py", "mae.py"),
        ("./configs/mae", "mae.py"),
        ("recipes/one_gpu", "recipes/one_gpu.py"),
        ("configs/recipes/one_gpu.py", "recipes/one_gpu.py"),
    ],
)
def test_shipped_configs_are_found_from_anywhere(name, file, write):
    """A folder of that name, as a workdir may have, is no config."""
    write("", "mae/config.json")
    assert find(name) == str(ROOT / file)


def test_the_path_of_a_file_comes_first(write, tmp_path):
    write(OWN + "get_config = base\n", "configs/mae.py")
    write("", "configs/__init__.py")
    assert find("configs/mae.py") == "configs/mae.py"
    assert find("mae") == str(ROOT / "mae.py")
    assert find(str(tmp_path / "configs/mae.py")) == str(tmp_path / "configs/mae.py")
    assert load("configs/mae.py").task == ""


def test_a_wheel_s_configs_hide_a_package_beside_it(tmp_path, monkeypatch):
    for name in ("mimjax/configs/mae.py", "mimjax/configs/recipes/one_gpu.py", "configs/other.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    folders = (tmp_path / "mimjax/configs", tmp_path / "configs")
    monkeypatch.setattr(config_files, "FOLDERS", folders)
    assert list(config_files.shipped()) == ["mae", "recipes/one_gpu"]
    assert find("mae") == str(tmp_path / "mimjax/configs/mae.py")
    with pytest.raises(ConfigError, match=r"not found; allowed: FILE\.py, mae, recipes"):
        find("other")


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("nothing", "'nothing': not found; allowed: FILE.py, .*beit, bootmae, .*/three_targets$"),
        ("configs/nothing.py", "'configs/nothing.py': not found; allowed: FILE.py, .*beit"),
        ("", "'': not found"),
        ("notes.txt", "'notes.txt': is no Python file"),
        ("../configs/mae", "'../configs/mae': not found"),
    ],
)
def test_a_name_of_nothing_lists_what_there_is(name, line, write):
    write("", "notes.txt")
    with pytest.raises(ConfigError, match=line):
        find(name)


def test_configs_import_the_package_alone():
    """None imports another, and none is a package; a recipe may define a method of its own."""
    files = list(ROOT.rglob("*.py"))
    assert len(files) >= 12
    for path in files:
        assert path.name != "__init__.py"
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert [alias.name for alias in node.names] == ["dataclasses"], path
            if isinstance(node, ast.ImportFrom):
                assert node.module.split(".")[0] == "mimjax", path


# ------------------------------------------------------------------ what a file may do wrong
WRONG = {
    "syntax": (OWN + "def get_config(:\n    return base()\n", "mine.py, line 2: invalid syntax"),
    "no get_config": (OWN, "mine.py, line 1: the file has no function `get_config`; allowed: "),
    "locked": (
        OWN + "def get_config(arg=None):\n    c = base().lock()\n    c.epoch = 3\n    return c\n",
        "mine.py, line 4: key 'epoch' is added to a locked config; allowed: ",
    ),
    "locked section": (
        OWN + "def get_config(arg=None):\n    c = load('mae')\n    c.method.ratio = 3\n",
        "mine.py, line 4: key 'ratio' is added to a locked config; allowed: ",
    ),
    "locked update": (
        OWN + "def get_config(arg=None):\n    c = load('mae')\n    c.update(ratio=3)\n",
        "mine.py, line 4: key 'ratio' is added to a locked config; allowed: ",
    ),
    "unknown": (
        OWN + "def get_config(arg=None):\n    return base().nothing\n",
        "mine.py, line 3: no key 'nothing'",
    ),
    "type": (
        OWN + "def get_config(arg=None):\n    c = base()\n    c.epochs = 'three'\n    return c\n",
        "mine.py, line 4: .*epochs",
    ),
    "returns nothing": (
        OWN + "def get_config(arg=None):\n    base()\n",
        "mine.py, line 2: `get_config` returns NoneType; allowed: a ConfigDict",
    ),
    "no argument": (
        OWN + "def get_config():\n    return base()\n",
        "config argument 'size=l': mine.py takes none",
    ),
    "locked on import": (
        OWN + "c = base().lock()\nc.epoch = 3\nget_config = lambda: c\n",
        "mine.py, line 3: key 'epoch' is added to a locked config; allowed: ",
    ),
    "a config that it builds on": (
        OWN + "c = load('mae:size=x')\ndef get_config(arg=None):\n    return c\n",
        "config argument size='x'; allowed: ti, s, b, l, h$",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_one_line_names_file_and_line(name, write):
    text, line = WRONG[name]
    with pytest.raises(ConfigError, match=line) as raised:
        load(write(text) + (":size=l" if name == "no argument" else ""))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ["1 / 0\n", "def get_config(arg=None):\n    return 1 / 0\n"])
def test_another_error_of_a_file_keeps_its_traceback(text, write):
    with pytest.raises(UserCodeError, match=r"mine\.py") as raised:
        load(write(text))
    assert isinstance(raised.value.__cause__, ZeroDivisionError)


def test_a_config_builds_on_another_by_name(write):
    """The loaded config is locked, and a second one begins with the published settings."""
    text = (
        OWN
        + "def get_config(arg=None):\n    c = load('mae:size=l')\n    c.seed = 3\n    return c\n"
    )
    c = load(write(text))
    assert (c.seed, c.method.encoder.depth, c.is_locked) == (3, 24, True)
    assert load("mae:size=l").seed == 0


# ------------------------------------------------------------------ arguments
KNOWN = {"size": {"s": 1, "b": 2}, "default": "b", "kind": ("conv", "vit"), "path": "", "res": 224}
KNOWN |= {"epochs": 3.0, "demo": False, "data": ("digits", "photos"), "rate": float}


@pytest.mark.parametrize(
    ("arg", "values"),
    [
        (None, {"size": "b", "kind": "conv", "path": "", "res": 224, "epochs": 3.0, "demo": False}),
        ("", {"size": "b"}),
        ("size=s,kind=vit,res=96,epochs=5,demo", {"size": "s", "kind": "vit", "res": 96}),
        ("epochs=5", {"epochs": 5.0, "rate": None}),
        ("rate=0", {"rate": 0.0}),
        ("demo,data=photos", {"demo": True, "data": "photos"}),
        ("demo=False", {"demo": False}),
        ('path="a,b",size=s', {"path": "a,b", "size": "s"}),
        ("path='a \"b\", c',size=s", {"path": 'a "b", c', "size": "s"}),
        ("path=it's/5,size=s", {"path": "it's/5", "size": "s"}),
        ("path=gs://a/b=c,,res=1,", {"path": "gs://a/b=c", "res": 1}),
    ],
)
def test_arguments(arg, values):
    a = arguments(arg, **KNOWN)
    assert {k: a[k] for k in values} == values
    assert {k: type(a[k]) for k in values} == {k: type(v) for k, v in values.items()}


@pytest.mark.parametrize(
    ("arg", "line"),
    [
        ("siz=s", "'siz': unknown; allowed: data, demo, epochs, kind, path, rate, res, size"),
        ("size=xl", "size='xl'; allowed: s, b"),
        ("size", "size=''; allowed: s, b"),
        ("kind=cnn", "kind='cnn'; allowed: conv, vit"),
        ("res=1.5", "res='1.5'; allowed: a whole number"),
        ("res=many", "res='many'; allowed: a whole number"),
        ("demo=3", "demo='3'; allowed: True or False"),
        ("rate=fast", "rate='fast'; allowed: a number"),
        ('path="a,b', 'path="a; allowed: a quote that is closed'),
        ("data=photos", "data='photos'; allowed: beside demo alone"),
        ("=s", "'': unknown"),
    ],
)
def test_wrong_arguments(arg, line):
    with pytest.raises(ConfigError, match=re.escape(line)):
        arguments(arg, **KNOWN)


def test_a_quoted_path_reaches_the_config():
    assert load('beit:path="a,b"').method.code_target.path == "a,b"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("beit:tokenizer=bpe", "tokenizer='bpe'; allowed: dalle, dvae, vqkd, vqgan,"),
        ("beit:tokenizer=pixels,path=a", "path='a' with tokenizer=pixels; allowed: none"),
        ("mrmae:teacher=joint,path=a", "allowed: --config.method.TARGET.first.path and --config."),
        ("cae:demo,tokenizer=dalle", "tokenizer='dalle' with demo; allowed: dvae, encoder, pixels"),
        ("caev2:demo,tokenizer=pixels,path=a", "path='a' with tokenizer=pixels; allowed: none"),
    ],
)
def test_targets_that_a_config_does_not_have(text, line):
    with pytest.raises(ConfigError, match=re.escape(line)):
        load(text)


@pytest.mark.parametrize("name", ["cae", "caev2", "caev2:size=l"])
def test_one_argument_moves_drop_path_in_all_networks(name):
    def rates(text):
        parts = load(text).method.values()
        return [part.drop_path for part in parts if hasattr(part, "keys") and "drop_path" in part]

    published = rates(name)
    assert set(published) == {0.2 if "size=l" in name else 0.1}
    changed = rates(f"{name}{',' if ':' in name else ':'}drop_path=0.3")
    assert changed == [0.3] * len(published)
    assert len(changed) > 1
