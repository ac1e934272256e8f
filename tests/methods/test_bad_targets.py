"""Settings that do not fit a method's target, mask or image: the line names the key."""

import pytest
from ml_collections import ConfigDict

from mimjax import schema
from mimjax.errors import ConfigError
from mimjax.masking.block import Block
from mimjax.methods.beit import BEiT
from mimjax.methods.cae import CAE
from mimjax.methods.caev2 import CAEv2
from mimjax.models.vit import ViT
from mimjax.schema import section
from mimjax.targets.clip import CLIP
from mimjax.targets.dalle import DallE
from mimjax.targets.dvae import DVAE
from mimjax.targets.encoder import EncoderFeatures
from mimjax.targets.vqgan import VQGAN
from mimjax.targets.vqkd import VQKD
from mimjax.task import Clock

TOKENIZERS = [DallE, DVAE, VQGAN, VQKD]
TEACHERS = [CLIP, EncoderFeatures]


def make(target, **options):
    """CAE v2 with a teacher, CAE with a tokenizer."""
    if type(target) in TEACHERS:
        return CAEv2(teacher_target=target, **options)
    return CAE(code_target=target, **options)


@pytest.mark.parametrize("target", TOKENIZERS + TEACHERS, ids=lambda t: t.__name__)
def test_a_grid_that_is_not_the_student_s(target):
    key = r"method\.teacher_target" if target in TEACHERS else r"method\.code_target"
    with pytest.raises(ConfigError, match=rf"^{key}\.size: 100x100 .* 14x14 patches") as e:
        make(target(size=(100, 100)))
    assert "None = derived" in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("target", TOKENIZERS + TEACHERS, ids=lambda t: t.__name__)
def test_derived_views_give_a_token_per_patch(target):
    """An image that is not square is no exception."""
    encoder = ViT(image_size=(160, 224), bias="qv", init_scheme="cae", pos_embed="sincos_yx")
    views = dict(make(target(), encoder=encoder).views)
    image = views.pop("image")
    assert image.size == (160, 224)
    [view] = views.values() or [image]
    step = view.size[0] // 10
    assert view.size == (10 * step, 14 * step)


@pytest.mark.parametrize("method", [BEiT, CAE, CAEv2])
@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.1, 0.999])
def test_ratios_that_leave_nothing(method, ratio):
    with pytest.raises(ConfigError, match=r"method\.masking\.ratio: "):
        method(masking=Block(ratio))


def test_the_least_ratio():
    """The count rounds up: the least ratio still masks a patch."""
    assert CAE(masking=Block(1e-9)).num_masked == 1


@pytest.mark.parametrize("method", [BEiT, CAE, CAEv2])
@pytest.mark.parametrize(("size", "side"), [((100, 224), "height 100"), ((224, 230), "width 230")])
def test_sides_that_the_patch_does_not_divide(method, size, side):
    encoder = ViT(image_size=size, bias="qv", use_mask_token=True)
    with pytest.raises(ConfigError, match=rf"method\.encoder\.image_size: {side} is not divisible"):
        method(encoder=encoder)


@pytest.mark.parametrize(
    "name", ["mimjax.targets.dalle:Dalle", "mimjax.targets.nothing:DallE", "dale"]
)
def test_an_unknown_type_of_target(name):
    task = "mimjax.methods.beit:BEiT"
    c = ConfigDict({"task": task, "method": section(BEiT), "dtype": "float32"})
    c.method.code_target.type = name
    with pytest.raises(ConfigError) as e:
        schema.make_task(c, Clock(1, 1))
    assert "method.code_target.type" in str(e.value)
    assert "\n" not in str(e.value)
