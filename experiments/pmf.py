"""P>M>F: pre-training, meta-training, fine-tuning (Hu et al. 2022, arXiv:2204.07305), its last stage.

    fewshot tune --method pmf --dataset caltech101 --split val --data-root DATA --backbone efficientnet_lite0 --shots 5 \\
        --queries 10 --episodes 60 --grid lr=0,0.0001,0.001,0.01
    python experiments/pmf.py --data-root DATA
    fewshot table experiments/pmf.py --data-root DATA        # measured beside published, evaluates nothing

The paper: Meta-Dataset (10 domains; 5 to 50 ways, variable shots, up to 10 queries per class, 600 episodes a domain), DINO
ViT-S/16 at 128 pixels, meta-trained as a ProtoNet with cosines on 8 domains or on ImageNet alone, then per episode Adam on
the whole network with the learning rate of 0, 1e-4, 1e-3 and 1e-2 that is best on validation episodes of the domain.

None of these numbers has a run here: Meta-Dataset is a collection of ten other data sets in a form of its own, its
episodes vary in ways and shots, and the meta-trained weights are not among those here. With a GPU, any of its domains as a
folder of images and DINO's weights (`--backbone timm/vit_small_patch16_224.dino --weights pretrained`) the commands above
make the fine-tuning stage.

Measured beside it: Caltech-101 with EfficientNet-Lite0 at 64 pixels, 5-way 1- and 5-shot, 200 episodes, without
fine-tuning (lr=0) and with the paper's 40 steps on all blocks at its smallest rate. About an hour on one CPU core;
experiments/fine_tuning.py compares tuned rates with other methods.
"""

from __future__ import annotations

from fewshot.evaluation.run import Run
from fewshot.experiments.published import Published
from fewshot.experiments.running import run_experiment

RUNS = [Run(dataset="caltech101", backbone="efficientnet_lite0", backbone_options={"image_size": 64}, method="pmf",
            parameters={"lr": rate}, shots=shots, queries=10, episodes=200) for rate in (0.0, 1e-4) for shots in (1, 5)]

SOURCE = "arXiv:2204.07305 (repo README hushell/pmf_cvpr22), best ada_lr per domain"
DOMAINS = ("ILSVRC", "Omniglot", "Aircraft", "Birds", "Textures", "QuickDraw", "Fungi", "VGGFlower", "TrafficSign", "MSCOCO")
# accuracy and interval of each domain, by what the backbone was meta-trained on
ACCURACY = {
    "8 domains": ((73.52, 0.80), (92.17, 0.57), (89.49, 0.52), (91.04, 0.37), (85.73, 0.62), (79.43, 0.67), (74.99, 0.94),
                  (95.30, 0.44), (89.85, 0.76), (59.69, 1.02)),
    "ImageNet": ((75.51, 0.72), (82.81, 1.10), (78.38, 1.09), (85.18, 0.77), (86.95, 0.60), (74.47, 0.83), (55.16, 1.09),
                 (94.66, 0.48), (90.04, 0.81), (62.60, 0.96))}
PUBLISHED = tuple(Published("pmf", f"Meta-Dataset/{domain}", f"DINO ViT-S/16 128px, {trained}", "5-50", "variable",
                            "balanced", accuracy, interval, SOURCE)
                  for trained, values in ACCURACY.items()
                  for domain, (accuracy, interval) in zip(DOMAINS, values, strict=True))

if __name__ == "__main__":
    run_experiment(__file__, RUNS, published=PUBLISHED)
