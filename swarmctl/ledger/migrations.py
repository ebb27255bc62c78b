"""The ledger's schema, as numbered steps that each file has taken or not.

A step, once released, is never edited: a new one is added. `migrations` in the file records what was taken.
A step that adds columns for fields that journals already hold forgets `journal_marks`, so that `sync` reads
them again.

Times are UTC. `more` keeps the fields of a record that have no column here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from swarmctl.errors import LedgerError

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Migration:
    """One step. `sql` may hold several statements."""

    number: int
    name: str
    sql: str


MIGRATIONS: tuple[Migration, ...] = (
    Migration(1, "exchanges and ratings", """
        CREATE TABLE exchanges (
            id VARCHAR PRIMARY KEY, at_utc TIMESTAMP, conversation VARCHAR, parent VARCHAR, terminal VARCHAR,
            via VARCHAR, category VARCHAR, host VARCHAR, runtime VARCHAR, model VARCHAR, digest VARCHAR,
            template VARCHAR, question VARCHAR, answer VARCHAR, finish VARCHAR, error VARCHAR,
            params JSON, max_tokens BIGINT, temperature DOUBLE, seed BIGINT,
            prompt_tokens BIGINT, cached_tokens BIGINT, prompt_seconds DOUBLE, completion_tokens BIGINT,
            decode_seconds DOUBLE, load_seconds DOUBLE, first_token_seconds DOUBLE, total_seconds DOUBLE,
            failovers BIGINT, route JSON, more JSON);
        CREATE TABLE messages (
            exchange VARCHAR, position BIGINT, role VARCHAR, content VARCHAR,
            PRIMARY KEY (exchange, position));
        CREATE TABLE attempts (
            exchange VARCHAR, position BIGINT, host VARCHAR, model VARCHAR, error VARCHAR, tokens BIGINT,
            PRIMARY KEY (exchange, position));
        CREATE TABLE ratings (
            id VARCHAR PRIMARY KEY, at_utc TIMESTAMP, exchange VARCHAR, model VARCHAR, digest VARCHAR,
            category VARCHAR, host VARCHAR, score DOUBLE, stars BIGINT, comment VARCHAR, correction VARCHAR,
            undoes VARCHAR, terminal VARCHAR, more JSON);
        CREATE TABLE torn (file VARCHAR, line BIGINT, byte_offset BIGINT, reason VARCHAR,
            PRIMARY KEY (file, byte_offset));
        CREATE TABLE journal_marks (file VARCHAR PRIMARY KEY, byte_offset BIGINT, lines BIGINT);
        """),
    Migration(2, "comparisons, and decisions of any kind", """
        CREATE TABLE comparisons (
            id VARCHAR PRIMARY KEY, at_utc TIMESTAMP, a VARCHAR, b VARCHAR, model_a VARCHAR, model_b VARCHAR,
            category VARCHAR, shown_left VARCHAR, choice VARCHAR, comment VARCHAR, terminal VARCHAR,
            more JSON);
        CREATE TABLE decisions (id VARCHAR PRIMARY KEY, at_utc TIMESTAMP, kind VARCHAR, record JSON);
        DELETE FROM journal_marks;
        """),
    Migration(3, "views", """
        CREATE VIEW current_ratings AS
            SELECT * FROM ratings r
            WHERE undoes IS NULL AND NOT EXISTS (SELECT 1 FROM ratings u WHERE u.undoes = r.id)
            QUALIFY row_number() OVER (PARTITION BY exchange ORDER BY id DESC) = 1;
        CREATE VIEW approval AS
            SELECT model, category, host, count(*) AS ratings, sum((1 + score) / 2) AS good,
                sum((1 - score) / 2) AS bad, avg((1 + score) / 2) AS approval
            FROM current_ratings WHERE score IS NOT NULL GROUP BY ALL;
        CREATE VIEW scores AS
            SELECT model, category, sum(good) AS good, sum(bad) AS bad FROM (
                SELECT model, category, (1 + score) / 2 AS good, (1 - score) / 2 AS bad
                    FROM current_ratings WHERE score IS NOT NULL
                UNION ALL SELECT model_a, category, if(choice = 'a', 0.5, 0), if(choice = 'a', 0, 0.5)
                    FROM comparisons WHERE choice <> 'tie'
                UNION ALL SELECT model_b, category, if(choice = 'b', 0.5, 0), if(choice = 'b', 0, 0.5)
                    FROM comparisons WHERE choice <> 'tie') GROUP BY ALL;
        CREATE VIEW answers AS
            SELECT e.*, r.score, r.stars, r.comment, r.correction
            FROM exchanges e LEFT JOIN current_ratings r ON r.exchange = e.id;
        """),
    Migration(4, "tool calls", """
        DROP VIEW answers;
        ALTER TABLE exchanges ADD COLUMN tool_calls JSON;
        ALTER TABLE messages ADD COLUMN tool_calls JSON;
        ALTER TABLE messages ADD COLUMN tool_call_id VARCHAR;
        ALTER TABLE messages ADD COLUMN name VARCHAR;
        CREATE VIEW answers AS
            SELECT e.*, r.score, r.stars, r.comment, r.correction
            FROM exchanges e LEFT JOIN current_ratings r ON r.exchange = e.id;
        """),
    Migration(5, "waits and second requests", """
        DROP VIEW answers;
        ALTER TABLE exchanges ADD COLUMN queue_seconds DOUBLE;
        ALTER TABLE attempts ADD COLUMN hedged BOOLEAN;
        CREATE VIEW answers AS
            SELECT e.*, r.score, r.stars, r.comment, r.correction
            FROM exchanges e LEFT JOIN current_ratings r ON r.exchange = e.id;
        """),
)


def migrate(connection: Any, steps: Sequence[Migration] = MIGRATIONS) -> tuple[int, ...]:  # noqa: ANN401  duckdb's
    """Take the steps that this file has not taken, each in a transaction. Gives their numbers.

    Raises LedgerError where the file has taken steps that this swarmctl does not know.
    """
    connection.execute("CREATE TABLE IF NOT EXISTS migrations "
                       "(number BIGINT PRIMARY KEY, name VARCHAR, applied_utc TIMESTAMP)")
    taken = {number for (number,) in connection.execute("SELECT number FROM migrations").fetchall()}
    unknown = taken - {step.number for step in steps}
    if unknown:
        raise LedgerError(f"the ledger was written by a newer swarmctl: step {max(unknown)} is unknown here",
                          hint="upgrade swarmctl, or make the ledger anew with `swarmctl log rebuild`")
    missing = [step for step in steps if step.number not in taken]
    for step in missing:
        _take(connection, step)
    return tuple(step.number for step in missing)


def _take(connection: Any, step: Migration) -> None:  # noqa: ANN401
    connection.begin()
    try:
        connection.execute(step.sql)
        connection.execute("INSERT INTO migrations VALUES (?, ?, epoch_ms(epoch_ms(current_timestamp)))",
                           [step.number, step.name])
    except BaseException:  # Ctrl-C too must leave no half step; raised again
        connection.rollback()
        raise
    connection.commit()
