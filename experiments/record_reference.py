r"""Records a PyTorch sampler, your own copy of a released one, on a checkpoint.

    python -m experiments.record_reference --generate=path/to/generate.py:generate \
        --checkpoint=HF_DIR --prompts_file=prompts.txt --sampler=low_confidence \
        --params='steps=64,gen_length=64,block_length=32,mask_id=126336' --output=DIR

Every line of the prompts file is one prompt: a JSON list of token ids, or a user's
message, which goes through the checkpoint's chat template. `generate` is called as
generate(model, prompt, **params). Writes one trace per prompt, which
`python -m experiments.compare --traces=DIR` replays. The default --model runs the
modelling code in the checkpoint's directory; `dlm_jax.parity.torch_llada:load_llada`
runs none. Traces that exist are never replaced.
Needs PyTorch.
"""

import os
import pathlib
from collections.abc import Sequence

from absl import flags
from tqdm import tqdm

from dlm_jax.errors import InputError
from dlm_jax.parity import traces
from dlm_jax.text.prompt_files import read_prompts
from experiments import _app

FLAGS = flags.FLAGS
_FLAGS = {
    "generate": "Sampler to record: path/to/file.py:function or module:function.",
    "checkpoint": "Directory of the checkpoint.",
    "prompts_file": "File with a prompt per line, or JSON with `prompt`; - is stdin.",
    "sampler": "Name of the rule in the traces, one that compare knows.",
    "params": "Keyword arguments of the sampler: name=literal,name=literal.",
    "output": "Directory to write the traces to.",
}
for _name, _help in _FLAGS.items():
    is_path = _name in ("checkpoint", "prompts_file", "output")
    define = _app.define_path if is_path else flags.DEFINE_string
    define(_name, None, _help, required=True)
flags.DEFINE_string(
    "model",
    "dlm_jax.parity.torch_llada:load_transformers",
    "Function that loads a checkpoint from its directory, written as in --generate.",
)
flags.DEFINE_string("name", None, "Stem of the traces' file names; default: --sampler.")


def main(_: Sequence[str]) -> None:
    """Records every prompt; see the module's docstring."""
    try:
        from dlm_jax.parity import recorder
    except ModuleNotFoundError as error:
        raise InputError(f"recording needs PyTorch: {error}") from None
    generate = recorder.resolve(FLAGS.generate)
    load_model = recorder.resolve(FLAGS.model)
    params = recorder.parse_params(FLAGS.params)
    read = read_prompts(FLAGS.prompts_file).prompts
    prompts = [prompt for prompt in read if isinstance(prompt, str)]
    if len(prompts) < len(read):
        raise InputError("prompts_file must hold texts, not conversations")
    output = pathlib.Path(FLAGS.output)
    names = [f"{FLAGS.name or FLAGS.sampler}__p{i}" for i in range(len(prompts))]
    traces.check_output(output, names)
    prompts = recorder.encode_prompts(prompts, FLAGS.checkpoint)
    model = load_model(FLAGS.checkpoint)
    checkpoint = os.path.relpath(FLAGS.checkpoint, output.absolute().parent)
    progress = tqdm(prompts, unit="prompt", disable=None)
    for name, prompt in zip(names, progress, strict=True):
        trace = recorder.record(
            generate,
            model,
            prompt,
            params,
            name=name,
            sampler=FLAGS.sampler,
            checkpoint=checkpoint,
            origin=pathlib.Path(FLAGS.generate).name,
        )
        path = traces.save(trace, output)
        tqdm.write(f"{path}: {trace.nfe} forwards")


if __name__ == "__main__":
    _app.run(main)
