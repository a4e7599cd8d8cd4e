"""A probe of one's own: whether the last features of an image encoder still tell how bright a picture is."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

import geo3d
from geo3d.probe import Probe, ProbeConfig, Score, register_probe, run_probe


@dataclass(frozen=True, kw_only=True)
class BrightnessConfig(ProbeConfig):
    """Read the brightness of pictures off the mean of the last features of an image encoder."""

    images: int = 16
    """Pictures of one grey each (count)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.images < 3:
            raise geo3d.InputError(f"images must be at least 3, which a line can miss, got {self.images}")


@dataclass(frozen=True)
class BrightnessScore(Score):
    """Squared error of a linear map, over that of naming the mean."""

    error: float

    def cells(self) -> dict[str, str]:
        return {"error": f"{self.error:.3f}"}


class BrightnessProbe(Probe):
    """Grey pictures, and how bright each of them is."""

    summary = "the brightness of grey pictures, read off by a linear map"
    settings = BrightnessConfig

    def __init__(self, config: BrightnessConfig, log) -> None:
        super().__init__(config, log)
        self.network = geo3d.create_model(config.model, checkpoint=config.checkpoint)
        self.grey = torch.linspace(0, 255, config.images).round().double()
        self.pictures = [Image.new("RGB", (64, 64), (int(grey),) * 3) for grey in self.grey]

    def network_features(self, network: geo3d.Encoder):
        network = network.to(self.config.device).eval()

        @torch.no_grad()
        def features(pictures: Sequence[Image.Image]) -> Tensor:
            maps = network.features(network.prepare(list(pictures)))[-1]
            return maps.mean((1, 2, 3)).unsqueeze(1).double().cpu()

        return features

    def input_features(self):
        return lambda pictures: torch.tensor([picture.getpixel((0, 0)) for picture in pictures])[:, :1].double()

    def measure(self, representations) -> dict[str, BrightnessScore]:
        scores = {}
        wanted = (self.grey - self.grey.mean())[:, None]
        for name, features in representations.items():
            columns = features(self.pictures)
            columns = columns - columns.mean(0)
            left = wanted - columns @ torch.linalg.lstsq(columns, wanted, driver="gelsd").solution
            scores[name] = BrightnessScore(float(left.square().sum() / wanted.square().sum()))
        return scores

    def note(self, scores: dict[str, BrightnessScore]) -> str:
        return f"over {len(self.pictures)} pictures"


register_probe("brightness", BrightnessProbe)


def main() -> None:
    """Probe a network that is saved for it, as `geo3d probe brightness --checkpoint FILE` would."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "resnet.safetensors"
        geo3d.save_model(geo3d.create_model("resnet_tiny", generator=torch.Generator().manual_seed(3)), file)
        run_probe("brightness", BrightnessConfig(checkpoint=file))


if __name__ == "__main__":
    main()
