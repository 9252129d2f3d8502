//! What to type to get what is missing.

/// Commands whose Debian package has another name.
const PACKAGES: [(&str, &str); 12] = [
    ("convert", "imagemagick"),
    ("dot", "graphviz"),
    ("ffprobe", "ffmpeg"),
    ("gs", "ghostscript"),
    ("identify", "imagemagick"),
    ("mediainfo", "mediainfo"),
    ("nvidia-smi", "nvidia-smi"),
    ("pdftoppm", "poppler-utils"),
    ("pdftotext", "poppler-utils"),
    ("exiftool", "libimage-exiftool-perl"),
    ("soffice", "libreoffice-core"),
    ("tesseract", "tesseract-ocr"),
];

/// How to install a command.
pub(super) fn command(command: &str) -> String {
    let package = PACKAGES.iter().find(|(known, _)| *known == command);
    let package = package.map_or(command, |(_, package)| package);
    format!("install {command} (Debian: apt-get install {package})")
}
