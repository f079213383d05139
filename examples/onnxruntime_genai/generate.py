"""Continue ids with onnxruntime-genai: `python generate.py BUNDLE IDS COUNT`.

BUNDLE is a language model's, IDS a JSON list. Prints what was added, greedily, as a line of JSON.
"""

import json
import sys
import time
from importlib.metadata import version

import onnxruntime_genai


def main(bundle: str, prompt: list[int], count: int) -> None:
    """Generate and print."""
    model = onnxruntime_genai.Model(bundle)
    parameters = onnxruntime_genai.GeneratorParams(model)
    parameters.set_search_options(max_length=len(prompt) + count, do_sample=False)
    generator = onnxruntime_genai.Generator(model, parameters)
    generator.append_tokens(prompt)
    start = time.perf_counter()
    while not generator.is_done():
        generator.generate_next_token()
    seconds = time.perf_counter() - start
    found = {
        "runtime": f"onnxruntime-genai {version('onnxruntime-genai')}",
        "ids": [int(token) for token in generator.get_sequence(0)][len(prompt) :],
        "text": onnxruntime_genai.Tokenizer(model).decode(generator.get_sequence(0)),
        "ms_per_token": seconds * 1e3 / count,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3]))
