"""COSOC: classes and queries compared by what their crops share (Luo et al. 2021, arXiv:2107.07746), its classifier SOC.

    python experiments/cosoc.py --data-root DATA
    fewshot table experiments/cosoc.py --data-root DATA       # measured beside published, evaluates nothing

The paper: 7 random crops, mirrored at random, of every image; 5-way, 15 queries per class; its backbone is trained on crops
of the foreground (COS), which is not part of this project: the runs on mini-ImageNet and tiered-ImageNet need weights of the
authors' kind, weights/resnet12_cosoc_<data set>.safetensors. The published numbers are of 5 times 2,000 episodes and, as far
as the released code made them, of variant="official".

Beside it: Omniglot with the Conv-4 trained here and Caltech-101 with EfficientNet-Lite0, 10,000 episodes, with the cosine to
the class mean of whole images and of the mean over the same crops for comparison. About 15 minutes on two CPU cores, without
the extraction (14 crops of each test image: 20 minutes for Caltech-101).
"""

from __future__ import annotations

from fewshot.evaluation.run import Run
from fewshot.experiments.published import numbers
from fewshot.experiments.running import run_experiment, small_data_runs, weights_file

KEPT, AVERAGED = "keep(7,flip=True)", "mean(7,flip=True)"
OFFICIAL = {"variant": "official"}
RUNS = [Run(dataset=dataset, backbone="resnet12", weights=weights_file(__file__, f"resnet12_cosoc_{dataset}"),
            method="cosoc", parameters=OFFICIAL, crops=KEPT, shots=shots)
        for dataset in ("mini_imagenet", "tiered_imagenet") for shots in (1, 5)]
RUNS += small_data_runs(__file__, "cosoc", crops=KEPT, distributions=("balanced",))
for crops in ("", AVERAGED):
    RUNS += small_data_runs(__file__, "simple_shot", parameters={"norm": "l2n", "metric": "cosine"}, crops=crops,
                            distributions=("balanced",))

LIGHTNING = "LightningFSL README (2000 episodes x5), Frankluox/LightningFSL"
QUOTED = "arXiv:2201.09699 (repo README ybendou/easy) quoting"
PUBLISHED = (*numbers("cosoc", "mini_imagenet", "resnet12", LIGHTNING, (1, 69.28, 0.49), (5, 85.16, 0.42), **OFFICIAL),
             *numbers("cosoc", "mini_imagenet", "resnet12", QUOTED, (1, 69.28, 0.49), (5, 85.16, 0.42), **OFFICIAL),
             *numbers("cosoc", "tiered_imagenet", "resnet12", QUOTED, (1, 73.57, 0.43), (5, 87.57, 0.10), **OFFICIAL))

if __name__ == "__main__":
    run_experiment(__file__, RUNS, rows=("backbone", "method", "crops"), published=PUBLISHED)
