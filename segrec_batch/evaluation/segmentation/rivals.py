"""What the proposed method is compared with: Abdullah 2026, tables 2 and 3."""

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


@dataclass(frozen=True)
class RivalSettings:
    """Which of RIVALS to fit, and how. seed and device go before those of the parts."""

    chosen: Sequence[str] = RIVALS
    classical: ClassicalSettings = field(default_factory=ClassicalSettings)
    unet: UNetSettings = field(default_factory=UNetSettings)
    mask_rcnn: MaskRcnnSettings = field(default_factory=MaskRcnnSettings)
    seed: int = 0
    device: str = "auto"

    def rivals(self) -> list[Rival]:
        """Those that were chosen. Raises InputError for a name that is none."""
        unknown = set(self.chosen) - set(RIVALS)
        if unknown:
            raise InputError(
                f"no rival {', '.join(sorted(unknown))}; there are {', '.join(RIVALS)}"
            )
        every = {
            "classical": Rival(
                ("svm", "logistic regression", "random forest", "k-NN"),
                self._classical,
                every_split=True,
            ),
            "unet": Rival((U_NET,), self._unet),
            "mask-rcnn": Rival((MASK_RCNN,), self._mask_rcnn),
        }
        return [every[name] for name in RIVALS if name in self.chosen]

    def _classical(self, trainer: Trainer) -> Methods:
        settings = replace(self.classical, seed=self.seed)
        return fit_classical(
            trainer.samples,
            trainer.taps,
            trainer.feature_maps,
            trainer.settings.shapes,
            trainer.classes,
            settings,
        )

    def _unet(self, trainer: Trainer) -> Methods:
        settings = replace(self.unet, seed=self.seed, device=self.device)
        return fit_unet(trainer.images, trainer.classes, settings)

    def _mask_rcnn(self, trainer: Trainer) -> Methods:
        settings = replace(self.mask_rcnn, seed=self.seed, device=self.device)
        return fit_mask_rcnn(trainer.images, trainer.classes, settings)
