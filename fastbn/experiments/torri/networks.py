"""Torri's MLP on images and LSTM on tweets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastbn.experiments.torri.glove import read_glove
from fastbn.models.families import Spec
from fastbn.models.layers import Layers
from fastbn.models.network import Network

PIXELS = 3 * 32 * 32


class MLP(Network):
    """Images (N, 3, 32, 32) -> logits: width, width/2 and width/4 units, each layer with BatchNorm and
    ReLU."""

    def build(self, spec: Spec) -> None:
        self.activation = Layers(spec).activation
        units = [PIXELS, spec.width, spec.width // 2, spec.width // 4]
        for i in range(3):
            self.add_module(f"fc{i + 1}", nn.Linear(units[i], units[i + 1]))
            self.add_module(f"bn{i + 1}", nn.BatchNorm1d(units[i + 1], spec.norm_eps, spec.norm_momentum))
        self.fc = nn.Linear(units[3], spec.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.flatten(x, 1)
        for i in range(3):
            x = self.activation(self.get_submodule(f"bn{i + 1}")(self.get_submodule(f"fc{i + 1}")(x)))
        return self.fc(x)


class LSTM(Network):
    """Words (N, 1 + T) int64, the first column the lengths (at least 1), the rest indices padded by 0, ->
    logits.

    Embedding -> BatchNorm -> ReLU -> LSTM of `width` -> its output at the last word -> BatchNorm -> ReLU ->
    linear -> BatchNorm. The first BatchNorm's statistics count the padding too, as the study's do."""

    def build(self, spec: Spec) -> None:
        self.embedding = nn.Embedding(spec.vocabulary, spec.embedding, padding_idx=0)
        self.bn1 = nn.BatchNorm1d(spec.embedding, spec.norm_eps, spec.norm_momentum)
        self.lstm = nn.LSTM(spec.embedding, spec.width, batch_first=True)
        self.bn2 = nn.BatchNorm1d(spec.width, spec.norm_eps, spec.norm_momentum)
        self.fc = nn.Linear(spec.width, spec.num_classes)
        self.bn3 = nn.BatchNorm1d(spec.num_classes, spec.norm_eps, spec.norm_momentum)

    def forward(self, x: Tensor) -> Tensor:
        lengths, words = x[:, 0], x[:, 1:]
        out = self.bn1(self.embedding(words).transpose(1, 2)).relu().transpose(1, 2)  # (N, T, embedding)
        out, _ = self.lstm(out)
        last = (lengths - 1)[:, None, None].expand(-1, 1, out.shape[2])
        out = self.bn2(out.gather(1, last).squeeze(1)).relu()
        return self.bn3(self.fc(out))

    @torch.no_grad()
    def begin(self, study: Mapping[str, Any], train: Any) -> None:
        """Begin with a file's vectors: with `vectors`, a GloVe file, the embedding of every word that the
        file knows becomes its vector; the other words keep their seeded one."""
        if "vectors" not in study:
            return
        place, vectors = read_glove(study["vectors"], self.spec.embedding)
        for row, word in enumerate(train.vocabulary):
            if word in place:
                self.embedding.weight[row] = torch.from_numpy(np.array(vectors[place[word]]))
