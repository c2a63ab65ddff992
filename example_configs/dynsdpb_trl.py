"""Fine-tunes a chat model with TRL's SFTTrainer and DynSDPB, on a file of messages.

    python example_configs/dynsdpb_trl.py
    python example_configs/dynsdpb_trl.py --use_peft --dynsdpb_alpha 0.5 --dynsdpb_temperature 3.0

All options of TRL's SFTConfig and ModelConfig work, and each setting of DynSDPB as --dynsdpb_<name>; --help lists
them. As it stands it trains SmolLM2-135M-Instruct, which prepare_smollm2.py makes, on 96 short dialogues.
"""

from dataclasses import dataclass, field
from typing import Any

from datasets import load_dataset
from trl import ModelConfig, TrlParser, get_peft_config, get_quantization_config

from axolotl_sdft import DynSDPBSFTConfig, DynSDPBSFTTrainer


@dataclass
class DataArguments:
    data: str = field(
        default="example_configs/data/quickstart.jsonl",
        metadata={"help": "JSONL file with a column messages, or prompt and completion, or text."},
    )


def main(arguments: list[str] | None = None) -> DynSDPBSFTTrainer:
    """Train as the command line says, save the model and return its trainer."""
    parser = TrlParser((DataArguments, DynSDPBSFTConfig, ModelConfig))
    parser.set_defaults(
        model_name_or_path="models/SmolLM2-135M-Instruct",
        output_dir="out/dynsdpb_trl",
        report_to="none",
        per_device_train_batch_size=4,
        max_length=256,
        num_train_epochs=2,
        learning_rate=1e-5,
        save_strategy="no",
    )
    data_args, training_args, model_args = parser.parse_args_and_config(arguments)
    training_args.model_init_kwargs = loading(model_args) | (training_args.model_init_kwargs or {})
    trainer = DynSDPBSFTTrainer(
        model=model_args.model_name_or_path,
        args=training_args,
        train_dataset=load_dataset("json", data_files=data_args.data, split="train"),
        peft_config=get_peft_config(model_args),
    )
    trainer.train()
    trainer.save_model(training_args.output_dir)
    return trainer


def loading(model_args: ModelConfig) -> dict[str, Any]:
    """Return how the options of ModelConfig want the model loaded."""
    settings = {
        "revision": model_args.model_revision,
        "dtype": model_args.dtype,
        "attn_implementation": model_args.attn_implementation,
        "quantization_config": get_quantization_config(model_args),
        "trust_remote_code": getattr(model_args, "trust_remote_code", None),  # later an option of the trainer's own
    }
    return {name: value for name, value in settings.items() if value is not None}


if __name__ == "__main__":
    main()
