"""Tasks on a pretrained encoder, and the algorithms that score its features.

A head (`head`) turns an encoder's output into classes. `probing` trains heads on frozen features,
one or a grid of them side by side; their kinds stand in `linear_probe` and `attentive_probe`.
`fine_tune` trains the encoder with its head; what such tasks share stands in `tuning`. `neighbors`
needs no training. Nothing here knows files, flags or a data set.
"""
