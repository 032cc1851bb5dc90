"""Every op once on every backend with kernels, on small shapes: what compute-sanitizer can watch in reasonable time.

``python -m benchmarks.small_calls [--device cuda]``
"""

import argparse

import torch

from maskfeat_kernels import (
    DALAL_TRIGGS,
    MASKFEAT,
    OPENCV,
    SKIMAGE,
    available_backends,
    fused_hog,
    fused_hog_tokens,
    fused_mask_tokens,
    fused_masked_gather,
)
from maskfeat_kernels.testing import DTYPES, FLOATS, check_hog, images


def hog(backend: str, device: str) -> None:
    for dtype in DTYPES:
        x = images(2, 3, 19, 40, dtype=dtype)
        check_hog(fused_hog(x.to(device), backend=backend).cpu(), x)
        interleaved = images(2, 16, 24, 3, dtype=dtype).permute(0, 3, 1, 2)
        check_hog(fused_hog(interleaved.to(device), backend=backend).cpu(), interleaved)


def hog_dialects(backend: str, device: str) -> None:
    x = images(2, 3, 40, 56, dtype=torch.uint8)
    for spec in (SKIMAGE, OPENCV, DALAL_TRIGGS):
        result = fused_hog(x.to(device), spec, backend=backend).cpu()
        expected = fused_hog(x.double(), spec, backend="reference")
        torch.testing.assert_close(result.double(), expected, rtol=0, atol=5e-6)


def hog_gradients(backend: str, device: str) -> None:
    x = 1 + torch.rand(2, 3, 40, 56, dtype=torch.float64)  # without ties, where the gradient has a kink
    for spec in (MASKFEAT, SKIMAGE, OPENCV):
        gradients = []
        for name, place in ((backend, device), ("reference", "cpu")):
            leaf = x.to(place).requires_grad_()
            fused_hog(leaf, spec, backend=name).pow(3).sum().backward()
            gradients.append(leaf.grad.cpu())
        torch.testing.assert_close(*gradients, rtol=0, atol=1e-6 * float(gradients[1].abs().max()))


def hog_tokens(backend: str, device: str) -> None:
    x, ids = images(2, 2, 3, 32, 48, dtype=torch.uint8), torch.tensor([[0, 5, 11], [7, 7, 1]])
    result = fused_hog_tokens(x.to(device), ids.to(device), backend=backend).cpu()
    expected = fused_hog_tokens(x.double(), ids, backend="reference")
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=2e-6)


def token_moves(backend: str, device: str) -> None:
    ids = torch.tensor([[0, 5, 5], [8, 1, 0]], device=device)
    mask = torch.tensor([[True, False, True] * 3, [False, False, True] * 3], device=device)
    for dtype in FLOATS:
        tokens = torch.randn(2, 9, 40).to(device, dtype).requires_grad_()
        mask_token = torch.randn(40).to(device, dtype).requires_grad_()
        gathered = fused_masked_gather(tokens, ids, backend=backend)
        assert torch.equal(gathered, tokens[torch.arange(2, device=device).unsqueeze(1), ids])
        masked = fused_mask_tokens(tokens, mask_token, mask, backend=backend)
        assert torch.equal(masked, torch.where(mask.unsqueeze(-1), mask_token, tokens))
        (gathered.float().sum() + masked.float().sum()).backward()
        assert torch.equal(mask_token.grad.cpu(), torch.full((40,), float(mask.sum()), dtype=dtype))
        counts = torch.zeros(2, 9, device=device).scatter_add_(1, ids, torch.ones_like(ids, dtype=torch.float32))
        assert torch.equal(tokens.grad[..., 0].float(), counts + ~mask)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda or cpu (default cuda)")
    device = parser.parse_args().device
    for backend in available_backends(device)[:-1]:  # the last is the reference
        for call in (hog, hog_dialects, hog_gradients, hog_tokens, token_moves):
            call(backend, device)
            print(f"{backend}: {call.__name__}", flush=True)
    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
