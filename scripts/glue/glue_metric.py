"""The GLUE metrics as an `evaluate` module, with the official names, on scikit-learn and scipy.

Loaded by its path (`evaluate.load(PATH, TASK)`), so nothing comes from the network.
"""

import datasets
import evaluate
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import f1_score, matthews_corrcoef


class GlueMetric(evaluate.Metric):
    """accuracy; with f1 for mrpc and qqp; matthews_correlation for cola and ax;
    pearson and spearmanr for stsb."""

    def _info(self):
        value = "float32" if self.config_name == "stsb" else "int64"
        return evaluate.MetricInfo(
            description="The metrics of the GLUE benchmark (Wang et al. 2019).",
            citation="",
            inputs_description="predictions, references: one number per example.",
            features=datasets.Features(
                {"predictions": datasets.Value(value), "references": datasets.Value(value)}
            ),
        )

    def _compute(self, predictions, references):
        if self.config_name == "stsb":
            return {
                "pearson": float(pearsonr(predictions, references)[0]),
                "spearmanr": float(spearmanr(predictions, references)[0]),
            }
        if self.config_name in ("cola", "ax"):
            return {"matthews_correlation": float(matthews_corrcoef(references, predictions))}
        hits = [p == r for p, r in zip(predictions, references, strict=True)]
        result = {"accuracy": sum(hits) / len(hits)}
        if self.config_name in ("mrpc", "qqp"):
            result["f1"] = float(f1_score(y_true=references, y_pred=predictions))
        return result
