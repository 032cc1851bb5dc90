"""A package of AOTInductor of a model with our layers runs in another process, after the line of docs/pytorch.md."""

import subprocess
import sys

import pytest
import torch
from conftest import COMPILED

from maskfeat_kernels import SKIMAGE, fused_hog_tokens, fused_mask_tokens, fused_masked_gather
from maskfeat_kernels.nn import HOG

RUN = """
import sys, torch
{register}
model = torch._inductor.aoti_load_package(sys.argv[1] + "/model.pt2")
torch.save(model(torch.load(sys.argv[1] + "/images.pt")), sys.argv[1] + "/result.pt")
"""


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.hog, self.blocks, self.linear = HOG(bins=6), HOG(SKIMAGE, cell=4), torch.nn.Linear(6, 2)

    def forward(self, x):
        hog, ids = self.hog(x), torch.arange(3).expand(x.shape[0], 3)
        tokens = fused_hog_tokens(x, ids)
        masked = fused_mask_tokens(tokens, tokens[0, 0], ids > 1)
        return hog, self.blocks(x), fused_masked_gather(masked, ids % 2), self.linear(hog.mean((1, 3, 4)))


def run(folder, register):
    command = [sys.executable, "-c", RUN.format(register=register), str(folder)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.slow  # compiles for a minute
@pytest.mark.skipif("cpu" not in COMPILED, reason="the extension is not built")
@pytest.mark.filterwarnings("ignore")  # of torch about itself
@pytest.mark.parametrize("ci", ["", "true"])
def test_a_package_runs_where_the_ops_are_registered(tmp_path, monkeypatch, ci):
    """Also where the variable CI is set, which makes inductor strict."""
    monkeypatch.setenv("CI", ci)
    torch.manual_seed(0)
    model, batch = Model().eval(), torch.export.Dim("batch", min=1, max=64)
    images = torch.randint(0, 256, (5, 3, 32, 48), dtype=torch.uint8)
    program = torch.export.export(model, (images[:2],), dynamic_shapes=({0: batch},))
    torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
    torch.save(images, tmp_path / "images.pt")
    without = run(tmp_path, "")
    assert without.returncode != 0 and "maskfeat_kernels" in without.stderr
    done = run(tmp_path, "import maskfeat_kernels")
    assert done.returncode == 0, done.stderr
    *features, linear = torch.load(tmp_path / "result.pt")
    *want, of_linear = model(images)
    assert len(features) == 3 and all(map(torch.equal, features, want))
    torch.testing.assert_close(linear, of_linear)
