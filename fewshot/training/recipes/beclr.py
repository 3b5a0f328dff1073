"""BECLR: self-supervised learning with positives from a memory of dynamic clusters."""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewshot.backbones import Backbone
from fewshot.core.checked import check_integer, check_number
from fewshot.core.errors import FewshotError
from fewshot.ops.transport import sinkhorn
from fewshot.training.config import SupervisedConfig
from fewshot.training.objectives import OBJECTIVES, Objective, head_logits


@OBJECTIVES.register("beclr")
class BECLR(Objective):
    """Student (backbone, projector g, predictor q) and teacher (their moving average, without predictor) see two views.
    With p = q(z_S), z_S = g(h) of the student and z_T of the teacher, all of unit length:

        - mean of <p_i, z>  over z in {z_T of the other view of i} and its k nearest in the memory
        + negatives log( mean of exp(<z_S_i, z_S_j> / temperature) )  over all i, j of the batch that show two images.

    The memory (DyCE) holds the last `clusters` x `cluster_size` embeddings of the teacher. Once full it is clustered by
    k-means; from then on a batch is assigned to the clusters by optimal transport with equal marginals, takes the place
    of the oldest embeddings, and prototypes are the means of their members. Neighbours are searched in the cluster of the
    nearest prototype, from the share `memory_start` of the training on.

    momentum   of the teacher, rising to 1 as a cosine;  reg: of the transport;  neighbours: k

    Labels of the base classes do not reach this objective; see `simclr` about those of the validation classes.

    Source: Poulakakis-Daktylidis and Jamali-Rad 2024, arXiv:2402.02444; stypoumic/BECLR (dyce.py, model/beclr.py and the
    settings for miniImageNet, but for `reg`). A compact reading. Deviations:
    - the code keeps memories of p and z_S, too, and pairs their detached entries, which carries no gradient; here p is
      aligned with the teacher's neighbours itself, and the negatives are those of the batch;
    - neighbours are searched before the batch enters the memory: the code finds every embedding as its own neighbour;
    - the transport has the distance as its cost, where the code's kernel grows with it; epsilon 0.05 as in its arguments;
    - no clustering anew every 60 epochs, no masked patches, no random augmentations beyond those named below;
    - one pass a step, so one process: the memory is not shared.
    """

    views = 2
    uses_labels = False
    defaults = {"epochs": 400, "batch_size": 256, "lr": 0.3, "nesterov": False, "weight_decay": 1e-4, "validate_every": 0,
                "augmentation": "resized_crop(0.2),color_jitter(0.4,hue=0.1,p=0.8),greyscale(0.2),flip"}

    def __init__(self, config: SupervisedConfig, classes: int, feature_dim: int, *, projection_dim: int = 512,
                 clusters: int = 200, cluster_size: int = 40, neighbours: int = 5, memory_start: float = 0.15,
                 momentum: float = 0.995, negatives: float = 0.1, temperature: float = 2.0, reg: float = 0.05):
        super().__init__()
        if config.accumulate > 1:
            raise FewshotError(f"accumulate={config.accumulate}: every pass would keep a memory of its own; recipe beclr "
                               "takes accumulate=1")
        width = check_integer("projection_dim", projection_dim, 4)
        self.momentum, self.progress = check_number("momentum", momentum, 0, 1), 0.0
        self.neighbours = check_integer("neighbours", neighbours, 0)
        self.memory_start = check_number("memory_start", memory_start, 0, 1)
        self.negatives = check_number("negatives", negatives, 0)
        self.temperature = check_number("temperature", temperature, 1e-3)
        self.projector = nn.Sequential(
            nn.Linear(feature_dim, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, width), nn.BatchNorm1d(width),
            nn.ReLU(), nn.Linear(width, width), nn.BatchNorm1d(width))
        self.predictor = nn.Sequential(nn.Linear(width, width // 4), nn.BatchNorm1d(width // 4), nn.ReLU(),
                                       nn.Linear(width // 4, width))
        self.teacher: nn.ModuleList | None = None
        self.memory = DyCE(width, check_integer("clusters", clusters, 2), check_integer("cluster_size", cluster_size, 1),
                           check_number("reg", reg, 1e-4))

    def extra_repr(self) -> str:
        return (f"neighbours={self.neighbours}, memory_start={self.memory_start}, momentum={self.momentum}, "
                f"negatives={self.negatives}, temperature={self.temperature}")

    def attach(self, backbone: Backbone) -> None:
        self.teacher = nn.ModuleList([copy.deepcopy(backbone), copy.deepcopy(self.projector)]).requires_grad_(False)

    def at(self, progress: float) -> None:
        self.progress = progress

    def loss(self, backbone: Backbone, images: Tensor, labels: Tensor,
             generator: torch.Generator) -> tuple[Tensor, Tensor]:
        assert self.teacher is not None, "attached"
        self._follow(backbone, self.teacher)
        projected = head_logits(self.projector, backbone(images))  # [2 B, D]
        predicted = F.normalize(self.predictor(projected), dim=1)
        with torch.no_grad():
            target = F.normalize(head_logits(self.teacher[1], self.teacher[0](images)), dim=1)
            count = self.neighbours if self.progress >= self.memory_start else 0
            positives = torch.cat([target[:, None], self.memory.nearest(target, count)], 1)  # [2 B, 1 + k, D]
            self.memory.add(target, generator)
        other = torch.arange(len(images), device=images.device).roll(len(labels))
        aligned = torch.einsum("bd,bkd->bk", predicted, positives[other]).mean()
        return self.negatives * self._uniformity(projected) - aligned, predicted[:len(labels)] @ target[len(labels):].T

    def _uniformity(self, projected: Tensor) -> Tensor:
        z = F.normalize(projected, dim=1)
        different = ~torch.eye(len(z) // 2, dtype=torch.bool, device=z.device).repeat(2, 2)
        return (z @ z.T / self.temperature)[different].exp().mean().log()

    @torch.no_grad()
    def _follow(self, backbone: nn.Module, teacher: nn.Module) -> None:
        """Move the teacher towards the student as the last step has left it."""
        momentum = 1 - (1 - self.momentum) * (1 + math.cos(math.pi * self.progress)) / 2
        for own, new in zip(teacher.parameters(), [*backbone.parameters(), *self.projector.parameters()], strict=True):
            own.lerp_(new, 1 - momentum)


class DyCE(nn.Module):
    """The memory: embeddings [M, D] of unit length, their clusters [M] and the prototypes [P, D]."""

    embeddings: Tensor
    clusters: Tensor
    prototypes: Tensor
    added: Tensor

    def __init__(self, width: int, clusters: int, cluster_size: int, reg: float):
        super().__init__()
        self.reg, self.size = reg, clusters * cluster_size
        self.register_buffer("embeddings", torch.zeros(self.size, width))
        self.register_buffer("clusters", torch.zeros(self.size, dtype=torch.int64))
        self.register_buffer("prototypes", torch.zeros(clusters, width))
        self.register_buffer("added", torch.zeros((), dtype=torch.int64))

    def extra_repr(self) -> str:
        return f"size={self.size}, clusters={len(self.prototypes)}, reg={self.reg}"

    @property
    def full(self) -> bool:
        return int(self.added) >= self.size

    def nearest(self, z: Tensor, count: int) -> Tensor:
        """[B, count, D]: of every z [B, D] the nearest in the cluster of its nearest prototype, or of all where this has
        fewer members; [B, 0, D] as long as the memory is not full."""
        if not self.full or count == 0:
            return z[:, None][:, :0]
        cluster = (z @ F.normalize(self.prototypes, dim=1).T).argmax(1)
        member = self.clusters == cluster[:, None]  # [B, M]
        member |= member.sum(1, keepdim=True) < count
        found = (z @ self.embeddings.T).masked_fill(~member, -torch.inf).topk(count, dim=1).indices
        return self.embeddings[found]

    def add(self, z: Tensor, generator: torch.Generator) -> None:
        """Put z [B, D] in the place of the oldest embeddings, with clusters once the memory is full."""
        if len(z) > self.size:
            raise FewshotError(f"the memory of {self.size} embeddings cannot take {len(z)} views of a batch; lower "
                               "batch_size or raise clusters or cluster_size")
        was_full = self.full
        places = (int(self.added) + torch.arange(len(z), device=z.device)) % self.size
        self.embeddings[places] = z.to(self.embeddings.dtype)
        self.added += len(z)
        if was_full:
            self.clusters[places] = self._assigned(z)
            self._average()
        elif self.full:
            self._cluster(int(torch.randint(2**31, (1,), generator=generator)))

    def _assigned(self, z: Tensor) -> Tensor:
        """Clusters [B] of z by ten iterations of Sinkhorn: every cluster gets about its share of the batch."""
        cost = torch.cdist(z, F.normalize(self.prototypes, dim=1))[None]  # [1, B, P]
        plan = sinkhorn(cost, cost.new_full(cost.shape[:2], 1 / cost.shape[1]),
                        cost.new_full((1, cost.shape[2]), 1 / cost.shape[2]), self.reg, max_iterations=10).plan
        return plan[0].argmax(1)

    def _average(self) -> None:
        """Prototypes: the means of their members; one without members stays where it is."""
        sizes = torch.zeros(len(self.prototypes), device=self.clusters.device).index_add_(
            0, self.clusters, torch.ones(self.size, device=self.clusters.device))
        sums = torch.zeros_like(self.prototypes).index_add_(0, self.clusters, self.embeddings)
        self.prototypes.copy_(torch.where(sizes[:, None] > 0, sums / sizes[:, None].clamp_min(1), self.prototypes))

    def _cluster(self, seed: int) -> None:
        from sklearn.cluster import KMeans

        found = KMeans(len(self.prototypes), n_init=10, random_state=seed).fit(self.embeddings.cpu().numpy())
        self.clusters.copy_(torch.from_numpy(found.labels_))
        self.prototypes.copy_(torch.from_numpy(found.cluster_centers_))
