"""Kinds of golden files that no check claims yet; a kind that gets one leaves this list.

A file of a kind that stands neither here nor in `CHECKS` fails, and so does a kind in both.
"""

PENDING = {
    "cae.fpn",
    *(f"mcmae.{k}" for k in ("det_backbone", "seg_backbone")),
    *(f"beitv2.{k}" for k in ("masking", "pretrain")),
    *(f"capi.{k}" for k in ("knn_seg", "logreg_seg")),
    *(f"data2vec.{k}" for k in ("pretrain", "steps")),
    *(f"dbot.{k}" for k in ("pretrain", "pretrain_clip")),
    *(f"dense.{k}" for k in ("box_coder", "cascade_heads", "coco_ap", "miou", "photometric")),
    *(f"dense.{k}" for k in ("roi_align", "roi_heads", "rpn", "rpn_anchors", "schedules")),
    *(f"dense.{k}" for k in ("slide", "uper_head", "vitdet")),
    "eva.pretrain",
    *(f"ibot.{k}" for k in ("masking", "pretrain", "steps")),
    *(f"ijepa.{k}" for k in ("masking", "pretrain", "steps")),
    *(f"maskfeat.{k}" for k in ("hog", "masking", "pretrain")),
    "milan.pretrain",
    *(f"pixio.{k}" for k in ("init", "masking", "pretrain", "steps")),
    "vqkd.train",
}
