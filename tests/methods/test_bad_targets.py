"""Settings that do not fit a method's target, mask or image: the line names the key."""

import pytest
from ml_collections import ConfigDict

from mimjax import schema
from mimjax.errors import ConfigError
from mimjax.masking.base import Masking
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


@pytest.mark.parametrize("target", TOKENIZERS + TEACHERS, ids=lambda t: t.__name__)
def test_a_grid_that_is_not_the_student_s(target):
    method = CAEv2 if target in TEACHERS else CAE
    with pytest.raises(ConfigError, match=r"method\.target\.size: 100x100 .* 14x14 patches") as e:
        method(target=target(size=(100, 100)))
    assert "None = derived" in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("target", TOKENIZERS + TEACHERS, ids=lambda t: t.__name__)
def test_derived_views_give_a_token_per_patch(target):
    """Also for an image that is not square."""
    encoder = ViT(image_size=(160, 224), bias="qv", init_scheme="cae", pos_embed="sincos_yx")
    task = (CAEv2 if target in TEACHERS else CAE)(encoder=encoder, target=target())
    view = task.views.get("target_image", task.views["image"])
    step = view.size[0] // 10
    assert view.size == (10 * step, 14 * step)


@pytest.mark.parametrize("method", [BEiT, CAE, CAEv2])
@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.1, 0.999])
def test_ratios_that_leave_nothing(method, ratio):
    with pytest.raises(ConfigError, match=r"method\.masking\.ratio: "):
        method(masking=Masking("block", ratio, max_block=None))


def test_the_least_ratio():
    """The count rounds up: the least ratio still masks a patch."""
    assert CAE(masking=Masking("block", 1e-9, max_block=None)).num_masked == 1


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
    c.method.target.type = name
    with pytest.raises(ConfigError) as e:
        schema.make_task(c, Clock(1, 1))
    assert "method.target.type" in str(e.value)
    assert "\n" not in str(e.value)
