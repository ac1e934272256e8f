"""The discrete VAE against a torch network built here, through the layout "dvae" both ways."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mimjax.models.dvae import DVAEDecoder, DVAEEncoder
from mimjax.models.vit import ViT
from mimjax.targets.base import Colors
from mimjax.targets.dvae import DVAE
from mimjax.torch_io.read import load


def network(layers, blocks, vocab=11, dim=5, hidden=6):
    """encoder, decoder and codebook as one torch module with the official names of parameters."""
    import torch

    nn = torch.nn

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            c = lambda size: nn.Conv2d(hidden, hidden, size, padding=size // 2)
            self.net = nn.Sequential(c(3), nn.ReLU(), c(3), nn.ReLU(), c(1))

        def forward(self, x):
            return x + self.net(x)

    def down(channels):
        return nn.Sequential(nn.Conv2d(channels, hidden, 4, 2, 1), nn.ReLU())

    def up(channels):
        return nn.Sequential(nn.ConvTranspose2d(channels, hidden, 4, 2, 1), nn.ReLU())

    torch.manual_seed(0)
    vae = nn.Module()
    vae.codebook = nn.Embedding(vocab, dim)
    steps = [down(3)] + [down(hidden) for _ in range(layers - 1)]
    vae.encoder = nn.Sequential(
        *steps, *[Block() for _ in range(blocks)], nn.Conv2d(hidden, vocab, 1)
    )
    first = [nn.Conv2d(dim, hidden, 1)] if blocks else []
    widths = [hidden if blocks else dim] + [hidden] * (layers - 1)
    steps = [Block() for _ in range(blocks)] + [up(w) for w in widths]
    vae.decoder = nn.Sequential(*first, *steps, nn.Conv2d(hidden, 3, 1))
    target = DVAE(
        encoder=DVAEEncoder(vocab, hidden, layers, blocks), decoder=DVAEDecoder(codebook_dim=dim)
    )
    return vae, target


@pytest.mark.parametrize(("layers", "blocks"), [(1, 2), (3, 1), (2, 0)])
def test_both_halves_equal_torch(layers, blocks):
    import torch

    vae, target = network(layers, blocks)
    state = {k: v.numpy() for k, v in vae.state_dict().items()}
    step = 2**layers
    student = ViT(patch=step, image_size=(3 * step, 2 * step))  # not square
    like = jax.eval_shape(lambda k: target.init_frozen(k, student), jax.random.key(0))
    frozen = jax.tree.map(jnp.asarray, load.from_torch(state, like))
    images = np.random.default_rng(0).normal(size=(2, *student.image_size, 3)).astype(np.float32)
    hidden = target.encode(frozen, jnp.asarray(images), student)
    logits = target.tokenizer.apply({"params": frozen["encoder"]}, hidden, method="logits")
    with torch.no_grad():
        theirs = vae.encoder(torch.tensor(images.transpose(0, 3, 1, 2)))
        np.testing.assert_allclose(logits, theirs.flatten(2).transpose(1, 2), atol=1e-5)
        ids = theirs.argmax(1)
        np.testing.assert_array_equal(target.read(frozen, hidden), ids.flatten(1))
        decoded = vae.decoder(vae.codebook(ids).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()
    decoder = {"params": frozen["decoder"]}
    np.testing.assert_allclose(
        target.matched.apply(decoder, jnp.asarray(ids.numpy())), decoded, atol=1e-5
    )
    hot = jax.nn.one_hot(jnp.asarray(ids.numpy()), 11)  # weights instead of codes
    np.testing.assert_allclose(target.matched.apply(decoder, hot), decoded, atol=1e-5)
    colors = Colors(jnp.asarray(images), target.statistics[0], target.statistics[1])
    pictures = target.decode(frozen, jnp.asarray(ids.flatten(1).numpy()), student, colors)
    np.testing.assert_allclose(pictures, np.clip(decoded / 2 + 0.5, 0, 1), atol=1e-5)
    back = load.to_torch(frozen, "dvae")
    assert back.keys() == state.keys()
    for key, value in state.items():
        np.testing.assert_array_equal(back[key], value)


def test_gradients_of_the_transposed_convolution_equal_torchs():
    import torch

    from mimjax.models.dvae import Deconv

    torch.manual_seed(0)
    layer, x = torch.nn.ConvTranspose2d(3, 4, 4, 2, 1), torch.randn(2, 3, 5, 2, requires_grad=True)
    layer(x).square().sum().backward()
    params = {
        "kernel": layer.weight.detach().numpy().transpose(2, 3, 1, 0),
        "bias": layer.bias.detach().numpy(),
    }
    loss = lambda p, x: jnp.square(Deconv(4).apply({"params": p}, x)).sum()
    ours, dx = jax.grad(loss, (0, 1))(params, x.detach().numpy().transpose(0, 2, 3, 1))
    theirs = layer.weight.grad.numpy().transpose(2, 3, 1, 0)
    np.testing.assert_allclose(ours["kernel"], theirs, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(ours["bias"], layer.bias.grad, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(dx, x.grad.numpy().transpose(0, 2, 3, 1), rtol=1e-4, atol=1e-4)
