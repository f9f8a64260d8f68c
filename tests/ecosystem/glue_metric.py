"""MRPC's metrics as an `evaluate` module, loaded by its path: the hub's own without a network."""

import datasets
import evaluate
from sklearn.metrics import accuracy_score, f1_score


class GlueMetric(evaluate.Metric):
    """accuracy and f1."""

    def _info(self):
        names = ("predictions", "references")
        return evaluate.MetricInfo(
            description="The metrics of MRPC.",
            citation="",
            inputs_description="predictions, references: one class number per example.",
            features=datasets.Features({name: datasets.Value("int64") for name in names}),
        )

    def _compute(self, predictions, references):
        values = {"accuracy": accuracy_score, "f1": f1_score}
        return {name: float(metric(references, predictions)) for name, metric in values.items()}
