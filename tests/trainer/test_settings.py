"""Names of settings are the names of what PyTorch code offers, and can be checked without PyTorch."""

import subprocess
import sys

from prtool.trainer.evaluation.baselines import registry
from prtool.trainer.models import auxiliary as extras
from prtool.trainer.models import predictor
from prtool.trainer.objectives import ranking
from prtool.trainer.settings import ARCHITECTURES, AUXILIARY, LOSS_NAMES, METHOD_NAMES


def test_names_are_those_of_the_registries() -> None:
    assert tuple(ranking.LOSSES) == LOSS_NAMES
    assert tuple(registry.METHODS) == METHOD_NAMES
    assert tuple(predictor._KINDS) == ARCHITECTURES
    assert (extras.POSITION, *extras._MEASURES) == AUXILIARY


def test_settings_need_no_torch() -> None:
    program = (
        "import sys, prtool.trainer.config, prtool.trainer.evaluation.config, prtool.trainer.data.formats.detect; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
