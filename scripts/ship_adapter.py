"""Make the adapter that ships with flatgd from a finished run of recipes/smollm2.yaml.

    python scripts/ship_adapter.py runs/smollm2/methods/flatgd

Writes flatgd/demo/smollm2: the adapter in bfloat16, its configuration with the base's name on the
hub, and the recipe, so that `flatgd chat` samples as the run did. Refuses a toxic expert.
"""

import json
import sys
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file, save_file

from flatgd.artifacts import layout
from flatgd.config.section import PACKAGE
from flatgd.models.adapters import is_toxic_expert
from flatgd.models.loading import ADAPTER

RECIPE = Path(__file__).parent.parent / "recipes/smollm2.yaml"
TARGET = PACKAGE / "demo/smollm2"
WEIGHTS = "adapter_model.safetensors"


def main() -> None:
    source = Path(sys.argv[1])
    if is_toxic_expert(source):
        sys.exit(f"{source} is a toxic expert, which never ships")
    recipe = yaml.safe_load(RECIPE.read_text())
    target = TARGET / layout.model(source.name)
    target.mkdir(parents=True, exist_ok=True)
    tensors = {name: t.to(torch.bfloat16) for name, t in load_file(source / WEIGHTS).items()}
    save_file(tensors, target / WEIGHTS, metadata={"format": "pt"})
    config = json.loads((source / ADAPTER).read_text())
    config["base_model_name_or_path"] = recipe["backbone"]
    config["target_modules"] = sorted(config["target_modules"])
    (target / ADAPTER).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    (TARGET / layout.RECIPE).write_text(json.dumps(recipe, indent=2) + "\n")


if __name__ == "__main__":
    main()
