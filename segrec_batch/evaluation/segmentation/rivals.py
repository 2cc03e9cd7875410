"""Methods that the segmentation report compares with: Abdullah 2026, tables 2 and 3."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from segrec_batch.common.errors import InputError
from segrec_batch.evaluation.segmentation.study import Rival
from segrec_batch.training.rivals.base import Methods
from segrec_batch.training.rivals.classical import ClassicalSettings, fit_classical
from segrec_batch.training.rivals.mask_rcnn import NAME as MASK_RCNN
from segrec_batch.training.rivals.mask_rcnn import MaskRcnnSettings, fit_mask_rcnn
from segrec_batch.training.rivals.unet import NAME as U_NET
from segrec_batch.training.rivals.unet import UNetSettings, fit_unet
from segrec_batch.training.trainer import Trainer

RIVALS = ("classical", "unet", "mask-rcnn")
_CLASSICAL = ("svm", "logistic regression", "random forest", "k-NN")


@dataclass(frozen=True)
class RivalSettings:
    """Chosen RIVALS and their settings; seed and device replace those of the parts."""

    chosen: Sequence[str] = RIVALS
    classical: ClassicalSettings = field(default_factory=ClassicalSettings)
    unet: UNetSettings = field(default_factory=UNetSettings)
    mask_rcnn: MaskRcnnSettings = field(default_factory=MaskRcnnSettings)
    seed: int = 0
    device: str = "auto"

    def rivals(self) -> list[Rival]:
        """Return the chosen rivals. Raises InputError for an unknown name."""
        unknown = sorted(set(self.chosen) - set(RIVALS))
        if unknown:
            raise InputError(f"no rival {', '.join(unknown)}; there are {', '.join(RIVALS)}")
        unet = replace(self.unet, seed=self.seed, device=self.device)
        mask_rcnn = replace(self.mask_rcnn, seed=self.seed, device=self.device)
        rivals = {
            "classical": Rival(_CLASSICAL, self._classical, every_split=True),
            "unet": Rival((U_NET,), lambda t: fit_unet(t.images, t.classes, unet)),
            "mask-rcnn": Rival(
                (MASK_RCNN,), lambda t: fit_mask_rcnn(t.images, t.classes, mask_rcnn)
            ),
        }
        return [rivals[name] for name in RIVALS if name in self.chosen]

    def _classical(self, t: Trainer) -> Methods:
        settings, shapes = replace(self.classical, seed=self.seed), t.settings.shapes
        return fit_classical(t.samples, t.taps, t.feature_maps, shapes, t.classes, settings)
