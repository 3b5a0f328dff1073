"""Models of open_clip small enough for tests, made known to it for the process; nothing is written into the package."""

from __future__ import annotations

import json

import open_clip

_TEXT = {"context_length": 20, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
_VIT = {"image_size": 32, "layers": 2, "width": 32, "patch_size": 8, "head_width": 16}
_TIMM = {"image_size": 32, "timm_model_pretrained": False}
CONFIGS = {
    "tiny-vit": {"embed_dim": 12, "vision_cfg": _VIT, "text_cfg": _TEXT},
    "tiny-resnet": {"embed_dim": 12, "text_cfg": _TEXT,
                    "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8}},
    # As SigLIP: scores pair by pair with a bias, no causal mask, the last token read, no projection of the images.
    "tiny-sigmoid": {"embed_dim": 64, "init_logit_bias": -10, "custom_text": True,
                     "vision_cfg": {**_TIMM, "timm_model_name": "test_vit", "timm_pool": "map", "timm_proj": "none"},
                     "text_cfg": {**_TEXT, "no_causal_mask": True, "proj_bias": True, "pool_type": "last"}},
    "tiny-timm": {"embed_dim": 12, "custom_text": True, "text_cfg": _TEXT,
                  "vision_cfg": {**_TIMM, "timm_model_name": "test_resnet", "timm_proj": "linear", "timm_proj_bias": True}},
    "tiny-coca": {"embed_dim": 12, "custom_text": True, "text_cfg": {**_TEXT, "embed_cls": True, "output_tokens": True},
                  "vision_cfg": {**_VIT, "attentional_pool": True, "attn_pooler_heads": 4, "output_tokens": True},
                  "multimodal_cfg": {"context_length": 20, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1,
                                     "attn_pooler_heads": 2}},
    "tiny-words": {"embed_dim": 12, "vision_cfg": _VIT, "text_cfg": {**_TEXT, "vocab_size": 100}}}


def add_to_open_clip(folder) -> None:
    for name, config in CONFIGS.items():
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
