"""Makes a small medical set: gray images of 12 bits, a bright lesion in one of 21, several images a patient.

    python tools/lesions.py --out=/tmp/lesions

Half of the files are DICOM, half 16-bit PNG; list.csv names them with label and patient. All is synthetic.
`docs/medical.md` goes from here to a report.
"""

import argparse
import csv
from pathlib import Path

import numpy as np
import pydicom
from PIL import Image

SIDE = 64  # pixels
WHITE = 4095  # of 12 bits
RATIO = 20  # images without a lesion for each with one


def tissue(rng: np.random.Generator) -> np.ndarray:
    """A smooth texture `[SIDE, SIDE]` around 1,200 of 4,095, with noise."""
    frequencies = np.hypot(*np.meshgrid(np.fft.fftfreq(SIDE), np.fft.fftfreq(SIDE)))
    spectrum = np.fft.fft2(rng.normal(size=(SIDE, SIDE))) / (1 + (40 * frequencies) ** 2)
    smooth = np.fft.ifft2(spectrum).real
    return 1200 + 350 * smooth / smooth.std() + rng.normal(0, 40, (SIDE, SIDE))


def lesion(rng: np.random.Generator) -> np.ndarray:
    """A bright ellipse with a soft rim, somewhere inside."""
    y, x = np.mgrid[:SIDE, :SIDE]
    (cy, cx), (ry, rx) = rng.uniform(SIDE / 4, 3 * SIDE / 4, 2), rng.uniform(5, 9, 2)
    distance = np.hypot((y - cy) / ry, (x - cx) / rx)
    return 1100 / (1 + np.exp(8 * (distance - 1)))


def write_dicom(path: Path, pixels: np.ndarray, patient: str) -> None:
    """A file of the kind "secondary capture", MONOCHROME2, 12 of 16 bits."""
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid(entropy_srcs=[str(path.name)])
    file = pydicom.dataset.FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    file.SOPClassUID, file.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    file.PatientID = patient
    file.Rows, file.Columns = pixels.shape
    file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
    file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 16, 12, 11, 0
    file.PixelData = pixels.tobytes()
    file.save_as(path, enforce_file_format=True)


def main() -> None:
    """Writes the set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    parser.add_argument("--images", type=int, default=2100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    (args.out / "scans").mkdir(parents=True, exist_ok=True)
    rows, patient, left = [], 0, 0
    for i in range(args.images):
        if not left:
            patient, left = patient + 1, int(rng.integers(3, 9))
        left -= 1
        sick = i % (RATIO + 1) == 0
        pixels = np.clip(tissue(rng) + sick * lesion(rng), 0, WHITE).astype(np.uint16)
        name = f"scans/{i:05}.{'dcm' if i % 2 else 'png'}"
        if i % 2:
            write_dicom(args.out / name, pixels, f"patient {patient}")
        else:
            Image.fromarray(pixels).save(args.out / name)
        rows.append((name, "lesion" if sick else "healthy", f"patient {patient}"))
    with open(args.out / "list.csv", "w", newline="") as file:
        csv.writer(file).writerows([("file", "label", "patient"), *rows])
    print(f"{args.out / 'list.csv'}: {len(rows):,} images of {patient:,} patients")


if __name__ == "__main__":
    main()
