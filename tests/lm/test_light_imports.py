import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "package",
    [
        "zfu_lib.data",
        "zfu_lib.data.catalogue",
        "zfu_lib.data.text",
        "zfu_lib.lm",
        "zfu_lib.lm.cache",
        "zfu_lib.lm.models",
        "zfu_lib.lm.protocol",
        "zfu_lib.lm.tiny",
    ],
)
def test_listing_data_does_not_load_torch(package):
    code = f"import sys, {package}; print(sorted({{'torch', 'transformers', 'datasets'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
