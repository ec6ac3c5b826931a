"""CodeS: Towards Building Open-source Language Models for Text-to-SQL"""

from __future__ import annotations

from latewood.papers.ledger import Paper

PAPER = Paper(
    number=9,
    name="codes",
    title="CodeS: Towards Building Open-source Language Models for Text-to-SQL",
    kind="learner + system",
    arxiv="2402.16347",
    summary=(
        "Continues a code model's pretraining on a mixture rich in SQL, feeds it prompts with the relevant tables and "
        "values, and scores the queries that it writes by running them on databases it has not seen."
    ),
)
