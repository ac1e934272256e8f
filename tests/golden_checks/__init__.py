"""Checks of golden files (numbers of the official code), one function per kind."""

from golden_checks import bootmae, cae, clip, interp, mae, tokenizers, vqgan

CHECKS = {
    "mae.pretrain": mae.pretrain,
    "mae.steps": mae.steps,
    "mae.masking": mae.masking,
    "mae.schedules": mae.schedules,
    "mae.init": mae.init,
    "bootmae.pretrain": bootmae.pretrain,
    "bootmae.steps": bootmae.steps,
    "bootmae.masking": bootmae.masking,
    "bootmae.schedules": bootmae.schedules,
    "bootmae.init": bootmae.init,
    "beit.pretrain": cae.beit,
    "beit.masking": cae.masking,
    "beit.interp": interp.beit,
    "cae.pretrain": cae.pretrain,
    "cae.steps": cae.steps,
    "cae.steps_ema": cae.steps_ema,
    "cae.masking": cae.masking,
    "cae.init": cae.init,
    "caev2.pretrain": cae.caev2,
    "caev2.pretrain_paper": cae.caev2,
    "clip.hf": clip.hf,
    "clip.openai": clip.openai,
    "tokenizer.vqgan": vqgan.tokenizer,
    "tokenizer.dalle": tokenizers.dalle,
    "tokenizer.flava": tokenizers.dalle,
    "tokenizer.dvae": tokenizers.dvae,
    "tokenizer.vqkd": tokenizers.vqkd,
}
