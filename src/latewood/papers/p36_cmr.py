"""CMR Scaling Law: Predicting Critical Mixture Ratios for Continual Pre-training of Language Models"""

from __future__ import annotations

from latewood.papers.ledger import Paper

PAPER = Paper(
    number=36,
    name="cmr",
    title="CMR Scaling Law: Predicting Critical Mixture Ratios for Continual Pre-training of Language Models",
    kind="protocol",
    arxiv="2407.17467",
    summary=(
        "Fits power laws to a few short runs at several domain shares, forecasts the share at which general text starts "
        "to suffer, and trains on either side of the forecast to check it."
    ),
)
