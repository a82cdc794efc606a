"""Writes deploy/grafana/dashboards/narrows.json from the panels below: `python tools/grafana.py`."""

import json
from pathlib import Path

OUT = Path(__file__).parent.parent / "deploy" / "grafana" / "dashboards" / "narrows.json"
SOURCE = {"type": "prometheus", "uid": "prometheus"}
WIDTH, HEIGHT = 8, 8

# (title, unit, [(query, legend), ...]); three panels a row.
PANELS: list[tuple[str, str, list[tuple[str, str]]]] = [
    ("Records read", "cps", [("sum by (stream) (rate(narrows_records_total[$__rate_interval]))", "{{stream}}")]),
    ("Records behind", "short", [("sum by (stream) (narrows_lag_records)", "{{stream}}")]),
    ("Record to delivered output", "s", [
        ("histogram_quantile(0.5, sum by (le) (rate(narrows_end_to_end_seconds_bucket[$__rate_interval])))", "p50"),
        ("histogram_quantile(0.99, sum by (le) (rate(narrows_end_to_end_seconds_bucket[$__rate_interval])))", "p99"),
    ]),
    ("Open episodes", "short", [("sum by (stream) (narrows_open_episodes)", "{{stream}}")]),
    ("Events of episodes", "cpm", [
        ("sum by (stream, state) (rate(narrows_episodes_total[$__rate_interval])) * 60", "{{stream}} {{state}}")
    ]),
    ("Rows: scored, and why not", "cps", [
        ("sum(rate(narrows_rows_scored_total[$__rate_interval]))", "scored"),
        ("sum by (reason) (rate(narrows_rows_unscored_total[$__rate_interval]))", "{{reason}}"),
    ]),
    ("Bytes in and out", "Bps", [
        ("sum(rate(narrows_record_bytes_total[$__rate_interval]))", "in"),
        ("sum by (topic) (rate(narrows_output_bytes_total[$__rate_interval]))", "{{topic}}"),
    ]),
    ("Records that could not be read", "cps", [
        ("sum by (stream, reason) (rate(narrows_dead_letters_total[$__rate_interval]))", "{{stream}} {{reason}}")
    ]),
    ("Late rows, duplicates, unknown fields", "cps", [
        ("sum(rate(narrows_late_rows_total[$__rate_interval]))", "late"),
        ("sum(rate(narrows_duplicates_total[$__rate_interval]))", "duplicates"),
        ("sum(rate(narrows_unknown_fields_total[$__rate_interval]))", "unknown fields"),
    ]),
    ("Devices", "short", [("sum by (stream) (narrows_devices)", "{{stream}}")]),
    ("Time of a batch", "s", [
        ("histogram_quantile(0.5, sum by (le) (rate(narrows_batch_seconds_bucket[$__rate_interval])))", "p50"),
        ("histogram_quantile(0.99, sum by (le) (rate(narrows_batch_seconds_bucket[$__rate_interval])))", "p99"),
    ]),
    ("Commits, rebalances, swaps", "cpm", [
        ("sum(rate(narrows_commits_total[$__rate_interval])) * 60", "commits"),
        ("sum(rate(narrows_rebalances_total[$__rate_interval])) * 60", "rebalances"),
        ("sum by (stream) (rate(narrows_swaps_total[$__rate_interval])) * 60", "swap of {{stream}}"),
    ]),
    ("Partitions of each worker", "short", [("narrows_partitions", "{{instance}}")]),
    ("Workers by model", "short", [("count by (stream, digest) (narrows_model_info)", "{{stream}} {{digest}}")]),
    ("Devices evicted, bundles refused", "short", [
        ("sum(increase(narrows_evicted_devices_total[$__rate_interval]))", "devices"),
        ("sum(increase(narrows_refused_bundles_total[$__rate_interval]))", "bundles"),
    ]),
]


def main() -> None:
    """Lays the panels out and writes the dashboard."""
    panels = [
        {
            "id": number + 1,
            "title": title,
            "type": "timeseries",
            "datasource": SOURCE,
            "gridPos": {"x": number % 3 * WIDTH, "y": number // 3 * HEIGHT, "w": WIDTH, "h": HEIGHT},
            "fieldConfig": {"defaults": {"unit": unit, "min": 0, "custom": {"showPoints": "never"}}, "overrides": []},
            "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
            "targets": [
                {"refId": chr(ord("A") + place), "datasource": SOURCE, "expr": query, "legendFormat": legend}
                for place, (query, legend) in enumerate(queries)
            ],
        }
        for number, (title, unit, queries) in enumerate(PANELS)
    ]
    dashboard = {
        "uid": "narrows", "title": "narrows", "tags": ["narrows"], "timezone": "browser", "schemaVersion": 39,
        "version": 1, "refresh": "10s", "time": {"from": "now-1h", "to": "now"}, "editable": True, "panels": panels,
    }
    OUT.write_text(json.dumps(dashboard, indent=1) + "\n")
    print(f"{OUT.name}: {len(panels)} panels")


if __name__ == "__main__":
    main()
