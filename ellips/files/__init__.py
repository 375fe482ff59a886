"""What is kept on disk: run folders, the journal, per-image records, certificates that can be checked."""

from ellips.files.atomic import replace_file, replacing
from ellips.files.configurations import build_listed, read_configuration
from ellips.files.folders import RUNS, ResultsFolder, RunFolder
from ellips.files.journal import Journal
from ellips.files.lines import LineJournal, read_json
from ellips.files.proofs import SavedCertificates, load_certificates, save_certificates
from ellips.files.records import (
    ImageRecord,
    certificate_from_records,
    records_from_certificate,
    records_to_tensors,
)
from ellips.files.results import read_results
from ellips.files.table import read_table, write_table
from ellips.files.tsv import read_tsv, write_tsv

__all__ = [
    "RUNS",
    "ImageRecord",
    "Journal",
    "LineJournal",
    "ResultsFolder",
    "RunFolder",
    "SavedCertificates",
    "build_listed",
    "certificate_from_records",
    "load_certificates",
    "read_configuration",
    "read_json",
    "read_results",
    "read_table",
    "read_tsv",
    "records_from_certificate",
    "records_to_tensors",
    "replace_file",
    "replacing",
    "save_certificates",
    "write_table",
    "write_tsv",
]
