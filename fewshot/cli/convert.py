"""The command that brings published weight files into this project: `fewshot convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fewshot.cli.values import pairs


def convert(checkpoint: Annotated[Path, typer.Argument(help="weight file that another project published (.pth, .tar, ...)")],
            out: Annotated[Path, typer.Option(help="file to write (.safetensors)")],
            backbone: Annotated[str | None, typer.Option(help="resnet12, wrn28_10, resnet18, conv4, timm/MODEL or "
                                                         "open_clip/MODEL:TAG; left out: the one of ours whose names the "
                                                         "file has")] = None,
            layout: Annotated[str, typer.Option(help="feat, metaopt, rfs, easy, s2m2 or simple_shot; auto: the one whose "
                                                "names the file has")] = "auto",
            dataset: Annotated[str | None, typer.Option(help="what the network was trained on, e.g. mini_imagenet: decides "
                                                        "mean, deviation and size of the images")] = None,
            image_size: Annotated[int | None, typer.Option(help="side of the images (default: the project's)")] = None,
            backbone_options: Annotated[list[str] | None, typer.Option(
                "--backbone-option", metavar="NAME=VALUE", help="an option of the backbone; repeat for more")] = None
            ) -> None:
    """Convert the weights of FEAT, MetaOptNet, RFS, EASY, S2M2, SimpleShot, LaplacianShot, TIM, PT-MAP, timm or OpenCLIP;
    the file is read without executing anything in it."""
    from fewshot.backbones import convert_official

    made = convert_official(checkpoint, out, backbone, layout, dataset=dataset, image_size=image_size,
                            **pairs(backbone_options))
    left = f"; left out: {', '.join(made['left_out'])}" if made["left_out"] else ""
    zeros = f"; {made['filled_with_zeros']} tensors it lacks are zero" if made["filled_with_zeros"] else ""
    typer.echo(f"{checkpoint.name} is {made['backbone']} as {made['layout']} names it ({made['repository']}), sha256 "
               f"{made['file_sha256'][:16]}{left}{zeros}")
    typer.echo(f"wrote {out}; use it: fewshot eval --backbone {made['backbone']} --weights {out}")
