"""An encoder without layer scales in timm's Beit, whose presets have some."""

import stubs

from mimjax.models.vit import ViT
from mimjax.torch_io.write import settings

stubs.replace("torchvision")


def test_what_a_call_states_makes_a_beit_without_layer_scales():
    import timm

    encoder = ViT(32, 2, 2, 2, (8, 8), pos_embed="learned", rel_pos="shared", bias="qv")
    name, args = settings.timm_model(encoder, True, "token", 3)
    for stated in (args, settings.unlike_preset(name, args)):
        model = timm.create_model(name, num_classes=0, **stated)
        assert not [k for k in model.state_dict() if "gamma" in k]
