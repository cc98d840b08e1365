"""Run in an environment with onnxruntime-genai: DIRECTORY TEXT IDS COUNT -> greedy tokens, as JSON on the last line.

Its model builder makes an ONNX model of the checkpoint first.
"""

import json
import subprocess
import sys
import tempfile

import onnxruntime_genai

# What is stored as floats stays so, the output head and the embedding, and activations are float32 and not eight bits.
AS_STORED = ("nodes_to_exclude=/lm_head/MatMul,/model/embed_tokens/Gather", "accuracy_level=1")


def main(directory: str, text: str, ids: list[int], count: int) -> None:
    with tempfile.TemporaryDirectory() as made:
        builder = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", directory, "-o", made]
        builder += ["-e", "cpu", "-p", "int4", "-c", f"{made}/cache", "--extra_options", *AS_STORED]
        done = subprocess.run(builder, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr)
        model = onnxruntime_genai.Model(made)
        params = onnxruntime_genai.GeneratorParams(model)
        params.set_search_options(max_length=len(ids) + count + 1)
        generator = onnxruntime_genai.Generator(model, params)
        generator.append_tokens(ids)
        tokens = []
        for _ in range(count):
            tokens.append(int(generator.get_logits()[0, -1].argmax()))
            generator.append_tokens(tokens[-1:])
        said = {"tokens": tokens, "ids": list(map(int, onnxruntime_genai.Tokenizer(model).encode(text)))}
    print(json.dumps(said))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4]))
