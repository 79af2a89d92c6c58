"""Hugging Face's transformers: a whole model for each task."""

from grouped_server import Forward, Setup, serve
from transformers import AutoModelForSequenceClassification


def load(setup: Setup) -> Forward:
    """Load the models, each with a copy of all weights."""
    models = [
        AutoModelForSequenceClassification.from_pretrained(setup.checkpoint, num_labels=2).eval()
        for _ in range(setup.models)
    ]
    return lambda model, inputs: models[model](**inputs).logits


if __name__ == "__main__":
    serve(load, ("transformers", "torch", "grpcio"))
