"""Three targets at once: pixels, the averaged encoder's own features, and those of a teacher.

  mimjax train --config=configs/recipes/three_targets.py:path=CLIP --workdir=DIR
    --config.data.path=IMAGENET
  (CLIP: openai/clip-vit-base-patch16 as .safetensors; see docs/teachers.md)
  arguments: size=ti|s|b|l, res=224, teacher=clip|dino|encoder, path=FILE or WORKDIR ('random' =
  noise), demo (the teacher is an encoder of configs/mae.py:demo), data=digits|shifted_digits|photos

It shows a method of one's own: the class below names its parts, and everything else (training,
accumulation, evaluation, pictures, export) follows from them. No paper has this composition, and
nobody has measured it. Optimizer and data are those of configs/mae.py; two blocks in a decoder are
BootMAE's; the weights of the losses are ours. `--config.method.teacher.weight=0.0` leaves a term
out, and with it its decoder and its teacher.
"""

import dataclasses

from mimjax.losses import Cosine
from mimjax.masking.base import Masking, Random
from mimjax.methods.mim import MIM, Average, Term
from mimjax.models.decoders import MAEDecoder
from mimjax.run.demos import DATA, small_run, small_target
from mimjax.run.sections import TARGETS, arguments, base, find_target, load, section
from mimjax.schedules import Constant
from mimjax.targets.base import Target
from mimjax.targets.clip import CLIP
from mimjax.targets.own import OwnFeatures
from mimjax.targets.pixels import Pixels
from mimjax.task import Predictor

TEACHERS = {"clip": CLIP(project=False), "dino": TARGETS["dino"], "encoder": TARGETS["encoder"]}


@dataclasses.dataclass(frozen=True)
class ThreeTargets(MIM):
    """The encoder sees the visible patches; three shallow decoders predict from them.

    loss = mean_m |pixel - norm(x)|^2  +  mean_m |LN(feature) - LN(average(x))|^2
           +  mean_{v,m} (1 - cos(teacher, CLIP(x)))
    """

    masking: Masking = Random(ratio=0.75)
    pixel_target: Target = Pixels(norm="patch")
    feature_target: Target = OwnFeatures(of="average", blocks=(-1,))  # before the final norm
    teacher_target: Target = CLIP(project=False)
    pixel_decoder: Predictor = MAEDecoder(depth=2)
    feature_decoder: Predictor = MAEDecoder(depth=2)
    teacher_decoder: Predictor = MAEDecoder(depth=2)
    pixel: Term = Term("pixel_target", "pixel_decoder")
    feature: Term = Term("feature_target", "feature_decoder", normalize="both")
    teacher: Term = Term("teacher_target", "teacher_decoder", at="visible+masked", loss=Cosine())
    average: Average | None = Average(("encoder",), decay=Constant(0.9999))


def get_config(arg=None):
    a = arguments(
        arg,
        size="b",
        res=224,
        teacher=tuple(TEACHERS),
        path="",
        demo=False,
        data=DATA,
    )
    mae = load(f"mae:size={a.size},res={a.res}")
    c = base()
    c.task = "configs/recipes/three_targets.py:ThreeTargets"
    c.method = m = section(ThreeTargets)

    # networks
    m.encoder.update(mae.method.encoder.to_dict())
    for decoder in (m.pixel_decoder, m.feature_decoder, m.teacher_decoder):
        decoder.width, decoder.depth, decoder.heads = 512, 2, 16

    # what is hidden, what is learned
    m.masking.ratio = 0.75
    m.pixel.weight, m.feature.weight, m.teacher.weight = 1.0, 1.0, 1.0
    m.average.decay.value = 0.9999
    if a.demo:
        target = small_target("encoder", a.path, a.data)
    else:
        target = find_target(a.teacher, a.path, TEACHERS, "teacher")
    m.teacher_target = section(target)

    # optimizer and data: configs/mae.py's
    c.epochs, c.batch_size, c.optimizer = mae.epochs, mae.batch_size, mae.optimizer
    c.data.augment = mae.data.augment
    return (demo(c, a.data) if a.demo else c).lock()


def demo(c, data):
    """Minutes on two CPU cores; no published number stands behind these settings."""
    c.unlock()
    d = small_run(c, data)  # data set, sizes of the encoder, steps, evaluations
    m = c.method
    m.pixel_target.norm = "none"  # see `small_run`
    m.masking.ratio = 0.5  # features of a few patches leave little to predict from
    m.average.decay.value = 0.99
    for decoder in (m.pixel_decoder, m.feature_decoder, m.teacher_decoder):
        decoder.width, decoder.depth, decoder.heads = d.decoder_width, 1, 4
    return c
