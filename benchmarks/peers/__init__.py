"""The methods once more, in PyTorch: `python -m benchmarks.peers` times each against mimjax.

Every peer is written from the method's description: frozen networks and one MAE are those of the
package transformers, the rest is plain torch (timm, whose blocks have the same operations, does not
import without torchvision). Parameters have the names of the official checkpoints, so that a peer
starts from mimjax's own weights through mimjax's export tables; before it is timed it must
reproduce mimjax's loss and gradient norm (`runner.check`).

Peers save the work that mimjax saves: visible patches are gathered before the projection, heads
read the predicted tokens alone, nothing returns to raster order. What remains between the two is
the framework. Images come normalized, as [b c h w].
"""
