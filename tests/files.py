"""Small real files for tests, made by the libraries that people's programs use."""

from __future__ import annotations

import io
from email.message import EmailMessage
from pathlib import Path

import pymupdf
from PIL import Image, ImageDraw, ImageFont


def text_pdf(path: Path, *pages: str) -> Path:
    """A PDF with a text layer, a page for each text."""
    with pymupdf.open() as document:
        for text in pages:
            document.new_page().insert_textbox((60, 60, 540, 780), text, fontsize=11)
        document.save(path)
    return path


def picture(text: str, size: tuple[int, int] = (1240, 500)) -> Image.Image:
    """A white picture with large print."""
    image = Image.new("L", size, 255)
    font = ImageFont.load_default(size=44)
    ImageDraw.Draw(image).multiline_text((60, 60), text, font=font, fill=0, spacing=24)
    return image


def scanned_pdf(path: Path, *pages: str) -> Path:
    """A PDF of pictures of text, without a text layer."""
    with pymupdf.open() as document:
        for text in pages:
            buffer = io.BytesIO()
            picture(text, (1240, 1754)).save(buffer, "PNG")
            page = document.new_page(width=595, height=842)
            page.insert_image(page.rect, stream=buffer.getvalue())
        document.save(path)
    return path


def encrypted_pdf(path: Path) -> Path:
    """A PDF that opens only with a password."""
    with pymupdf.open() as document:
        document.new_page().insert_text((60, 60), "secret")
        document.save(path, encryption=pymupdf.PDF_ENCRYPT_AES_256, user_pw="sesame", owner_pw="owner")
    return path


def mail(subject: str, body: str, *attachments: tuple[str, bytes, str]) -> bytes:
    """A mail; attachments are (name, bytes, media type)."""
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = "ann@example.com", "ben@example.com", subject
    message["Date"], message["Message-ID"] = "Mon, 03 Feb 2025 09:15:00 +0100", f"<{subject.replace(' ', '.')}@example>"
    message.set_content(body)
    for name, data, media_type in attachments:
        main, _, sub = media_type.partition("/")
        message.add_attachment(data, maintype=main, subtype=sub, filename=name)
    return bytes(message)


def mbox(path: Path, *mails: bytes) -> Path:
    """A mailbox of mails."""
    path.write_bytes(b"".join(b"From ann@example.com Mon Feb  3 09:15:00 2025\n" + one + b"\n" for one in mails))
    return path


CALENDAR = """BEGIN:VCALENDAR
VERSION:2.0
PRODID:-//test//EN
BEGIN:VEVENT
UID:standup@example
DTSTAMP:20250101T000000Z
DTSTART:20250203T090000Z
DTEND:20250203T091500Z
RRULE:FREQ=WEEKLY;BYDAY=MO
SUMMARY:Standup of the lighthouse team
LOCATION:Room Heron
END:VEVENT
END:VCALENDAR
"""
