"""Texts: of any encoding and language, tables, pages of the web, and lengths that hurt."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest

from engine.reasons import Reason
from engine.workers import markup
from engine.workers.decoding import decode
from engine.workers.reading import clean
from tests.unit.extraction import Desk, text_of

SAMPLES = {
    "german": "Sehr geehrte Damen und Herren, für die Übersendung der Unterlagen möchten wir uns herzlich bedanken.",
    "greek": "Αγαπητοί συνάδελφοι, αύριο θα γίνει η συνάντηση του τμήματος πωλήσεων.",
    "russian": "Уважаемые коллеги, завтра состоится собрание отдела продаж в десять часов утра.",
    "arabic": "السادة الزملاء، سيعقد اجتماع القسم غدا في الساعة العاشرة صباحا",
    "hindi": "प्रिय साथियों, कल सुबह दस बजे बैठक होगी।",
    "japanese": "会議は明日の午前十時に行われます。よろしくお願いいたします。",
    "chinese": "各位同事，明天上午十点召开销售部门会议，请准时参加。",
}
#: Two or three sentences each, in the encodings in which they were written before UTF-8.
LEGACY = [
    (("cp850", "mac_roman"), "Le client a été prévenu, la réponse arrivera à la fin de la semaine. L'été est là."),
    (("cp850",), "Für die Übersendung der Unterlagen danken wir. Größe und Maße stehen darin."),
    (("cp1252",), "De waarde ‘’ is niet toegestaan. Probeer ‘’ opnieuw, of kies een andere waarde uit de lijst."),
    (("cp1252",), "Det skal væ"),
    (("cp1252",), "Aujourd’hui."),
    (("cp852",), "Vážení kolegové, schůzka se koná zítra v deset hodin. Prosíme o včasný příchod."),
    (
        ("cp1250", "iso8859_2"),
        "Sastanak će biti sutra u deset sati. Ako ne možete doći, molimo da se javite.",
    ),
    (("cp1250",), "Vă rugăm să nu întârziaţi la şedinţa de mâine."),
    (("cp1250", "iso8859_2"), "Pagină inexistentă. Nu este gol."),
    (("cp1250", "iso8859_2"), "Broj stranice je manji od 1. Moguće je da nije dobar."),
    (("cp1257",), "Gerbiami kolegos, rytoj dešimtą valandą įvyks susirinkimas. Prašome nevėluoti."),
    (("cp1257",), "Cienījamie kolēģi, rīt desmitos notiks sanāksme. Lūdzam nekavēties."),
    (("cp1253", "iso8859_7"), "Άδεια λίστα. Άνω και κάτω, Αγαπητοί συνάδελφοι, αύριο θα γίνει η συνάντηση."),
    (
        ("cp1252", "latin-1"),
        "Für die Übersendung der Unterlagen danken wir. Größe und Maße stehen darin. Schöne Grüße!",
    ),
    (("cp1252",), "Il a été décidé que l’élève irait à Paris. Ça va bientôt être l'été… Le garçon mange du bœuf."),
    (("latin-1",), "Il va à Paris. On y mange bien."),
    (("cp1252",), "El niño comió piñas … ¿verdad? Señor Peña"),
    (("latin-1",), "¿Verdad? Mañana hablamos del año que viene."),
    (("cp1252",), "Não há razão para a situação. As eleições são amanhã."),
    (("cp1252",), "It’s “fine” – he said… the price is £5 or €6, at 20 °C ± 1."),
    (("cp1250", "iso8859_2"), "Proszę przyjść jutro o dziesiątej. Będzie też Łukasz. Może być później."),
    (("cp1250", "iso8859_2"), "Vážení kolegové, schůzka se koná zítra v deset hodin. Prosíme o včasný příchod."),
    (("cp1250",), "A holnapi értekezlet tíz órakor kezdődik. Kérjük, hogy időben érkezzenek."),
    (("cp1251", "koi8_r", "cp866"), "Уважаемые коллеги, завтра состоится собрание. Просим не опаздывать!"),
    (("cp1251", "koi8_r"), "ВНИМАНИЕ ВСЕМ СОТРУДНИКАМ! Собрание в десять."),
    (("cp1251",), "The word привет means hello, and people say it all day long wherever they meet."),
    (("cp1251", "koi8_u"), "Шановні колеги, завтра відбудуться збори. Просимо не запізнюватися, їжа є."),
    (("cp1253",), "Αγαπητοί συνάδελφοι, αύριο θα γίνει η συνάντηση. Παρακαλούμε να είστε στην ώρα σας."),
    (("cp1254",), "Değerli arkadaşlar, yarın saat onda toplantı yapılacaktır. İyi günler, çok teşekkürler."),
    (("cp1255",), "שלום לכולם, הפגישה תתקיים מחר בשעה עשר."),
    (("cp1256",), "السادة الزملاء، سيعقد اجتماع القسم غدا في الساعة العاشرة صباحا"),
    (("euc_jp", "cp932"), "会議は明日の午前十時に行われます。よろしくお願いいたします。"),
    (("euc_jp", "cp932"), "プログラムのインストール方法について。ファイルをコピーする。"),
    (("cp932",), "名前,年齢\n山田太郎,25\n鈴木花子,30\n"),
    (("gb18030",), "各位同事，明天上午十点召开销售部门会议，请准时参加。谢谢大家的支持。"),
    (("big5",), "各位同事，明天上午十點召開銷售部門會議，請準時參加。謝謝大家的支持。"),
    (("euc_kr",), "안녕하세요, 내일 오전 열 시에 회의가 있습니다. 시간을 지켜 주시기 바랍니다."),
]


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("language", SAMPLES)
def test_every_language_is_read_in_every_unicode_form(desk: Desk, language: str, encoding: str) -> None:
    """Byte for byte, without a trace of the byte order mark."""
    document = desk.read(SAMPLES[language].encode(encoding), "a.txt")
    assert text_of(document) == SAMPLES[language]
    assert not document.notes


@pytest.mark.parametrize(("encoding", "text"), [(name, text) for names, text in LEGACY for name in names])
def test_older_encodings_are_recognised(desk: Desk, encoding: str, text: str) -> None:
    """From a sentence or three, with nothing that declares them; a note says what was guessed."""
    document = desk.read(text.encode(encoding), "a.txt")
    assert text_of(document) == text
    assert any(note.startswith("the encoding of the text was guessed: ") for note in document.notes)


def test_an_encoding_that_says_itself_is_no_guess(desk: Desk) -> None:
    """Escapes, or UTF-8 without an error."""
    document = desk.read(SAMPLES["japanese"].encode("iso2022_jp"), "a.txt")
    assert (text_of(document), document.notes) == (SAMPLES["japanese"], ())
    assert not desk.read(SAMPLES["japanese"].encode(), "a.txt").notes


def test_an_encoding_of_escapes_is_read_in_all_its_forms(desk: Desk) -> None:
    """Narrow letters, Korean, and signs that Windows put where there are none: those are replaced, not all the rest."""
    text = "ｶﾅ " + SAMPLES["japanese"]
    assert text_of(desk.read(text.encode("iso2022_jp_ext"), "a.txt")) == text
    assert decode(text.encode("iso2022_jp_ext"), "ISO-2022-JP").text == text
    korean = "안녕하세요, 내일 오전 열 시에 회의가 있습니다."
    assert text_of(desk.read(korean.encode("iso2022_kr"), "a.txt")) == korean
    data = SAMPLES["japanese"].encode("iso2022_jp") + b"\x1b$B-!2q5D\x1b(B"
    for found in (decode(data), decode(data, "iso-2022-jp")):
        assert found.text.startswith(SAMPLES["japanese"])
        assert found.text.endswith("会議")
        assert (found.replaced, found.guessed) == (True, False)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("language", SAMPLES)
def test_utf16_without_a_mark_is_read_in_every_script(desk: Desk, language: str, encoding: str) -> None:
    """Only its blanks and line ends have NULs where the letters are not Latin."""
    text = f"1. {SAMPLES[language]}\r\n2. {SAMPLES[language]}\r\n"
    document = desk.read(text.encode(encoding), "a.txt")
    assert text_of(document).split() == text.split()
    assert document.notes == (f"the encoding of the text was guessed: {encoding}",)


def test_two_bytes_that_look_like_a_mark_do_not_make_utf16(desk: Desk) -> None:
    """UTF-8 with broken bytes and NULs, the first of which are FF FE."""
    document = desk.read(b"\xff\xfe\0caf\xe9\x80\x81 " * 1000, "a.txt")
    assert text_of(document).startswith("\ufffd\ufffdcaf\u9001 ")
    assert document.notes == ("some bytes of the text are not UTF-8 and were replaced",)


def test_bytes_broken_all_over_are_no_letters_of_another_encoding(desk: Desk) -> None:
    """Where nothing makes sense, what the page says of itself is left."""
    page = bytearray(b'<html><head><meta charset="utf-8"></head><body>' + b"<p>quick brown jumps</p>" * 100)
    for at in range(60, len(page), 67):
        page[at] |= 0x80
    document = desk.read(bytes(page), "a.html")
    assert any("not UTF-8" in note for note in document.notes)


def test_an_accent_after_a_long_plain_beginning_is_right(desk: Desk) -> None:
    """The sample for detection is taken where the first one stands."""
    data = b"plain words only, line after line\n" * 10_000 + "Größe: fünf Türen".encode("cp1252")
    assert text_of(desk.read(data, "a.txt")).endswith("Größe: fünf Türen")


def test_a_few_broken_bytes_do_not_make_utf8_something_else(desk: Desk) -> None:
    """They are replaced, and a note says so."""
    document = desk.read(SAMPLES["russian"].encode() + b"\xff" + SAMPLES["greek"].encode(), "a.txt")
    assert SAMPLES["russian"] in text_of(document)
    assert any("replaced" in note for note in document.notes)


@pytest.mark.parametrize("declared", ["utf-8", "nonsense", "base64", "unicode_escape", "idna", "", "x" * 500])
def test_a_declared_charset_is_believed_only_when_it_fits(declared: str) -> None:
    """Nor is it ever run."""
    assert decode(b"caf\xe9 \\u0041", declared).text == "café \\u0041"


def test_what_declares_itself_is_of_no_older_system() -> None:
    """A little of UTF-8 and some broken bytes would pass for letters of an old Mac, where every byte is one."""
    found = decode("yötä vaan.\n".encode() + b"\x8a\t\xe8\xad\xe7", "utf-8")
    assert found.text.startswith("yötä vaan.")
    assert found.replaced


def test_a_declared_charset_settles_what_detection_cannot() -> None:
    """Short words fit many encodings."""
    assert decode("会議".encode("euc_jp"), "EUC-JP").text == "会議"


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_rows_of_a_table_are_lines_of_cells(desk: Desk, delimiter: str) -> None:
    """Quotes and line breaks within cells are resolved."""
    rows = [["name", "town", "age"], ["Ann", '"Ulm\nDonau"', "3"], ["Bob", "Bonn", "4"]]
    data = "\n".join(delimiter.join(row) for row in rows).encode()
    assert text_of(desk.read(data, "a.csv")).splitlines() == [
        "name | town | age",
        "Ann | Ulm Donau | 3",
        "Bob | Bonn | 4",
    ]


@pytest.mark.parametrize("first", ["sep=;\r\n", '"sep=;"\n', "SEP=;\n"])
def test_a_table_may_say_what_parts_its_cells(desk: Desk, first: str) -> None:
    """As Excel reads it; the line itself is no row."""
    assert text_of(desk.read(f"{first}a, b;c\nd, e;f\n".encode(), "a.csv")).splitlines() == ["a, b | c", "d, e | f"]


@pytest.mark.parametrize(
    ("rows", "shown"),
    [
        (r'''1,"He said \"yes\", then left",""''', '1 | He said "yes", then left | '),
        (r"""1,"say ""yes"", C:\mill\",x""", '1 | say "yes", C:\\mill\\ | x'),
        (r"""1,"C:\mill\","",x""", "1 | C:\\mill\\ |  | x"),
    ],
)
def test_a_quote_within_quotes_is_doubled_or_has_a_backslash(desk: Desk, rows: str, shown: str) -> None:
    """As the table itself does; where backslashes part folders they are nothing else."""
    assert text_of(desk.read(f"{rows}\n".encode() * 3, "a.csv")).splitlines() == [shown] * 3


def test_what_a_log_tells_a_terminal_is_no_text(desk: Desk) -> None:
    """Colours, and the title of its window; what only looks like them stays."""
    log = "\x1b]0;make\x07\x1b[1;31mError\x1b[0m in \x1b[4mgate.c\x1b[m[12], a \x1b[38;2;9;9;9mwarning\x1b[K\n"
    assert text_of(desk.read(log.encode() * 9, "build.log")) == "Error in gate.c[12], a warning\n" * 9
    open_end = "a\x1b]0;b\nc \x1b[31"
    assert text_of(desk.read(open_end.encode(), "build.log")) == "a]0;b\nc [31"


def test_what_json_escapes_is_found(desk: Desk) -> None:
    """Letters beyond ASCII, which many programs write as numbers, and breaks, which would stick to words."""
    texts = {language: f"{text}\n\t\U0001f600" for language, text in SAMPLES.items()}
    for name in ("a.json", "a", "a.ipynb"):
        document = desk.read(json.dumps([texts, "a\\b/c"]).encode(), name)
        assert document.media_type == "application/json"
        for text in texts.values():
            assert text in text_of(document)
        assert "a\\b/c" in text_of(document)
    broken = rb'{"a": "\ud83d \ude00 \u00e9t\u00e9 \x \u12'
    assert text_of(desk.read(broken, "a.json")) == '{"a": "\ufffd \ufffd été \\x \\u12'
    assert text_of(desk.read(rb"C:\new\u00e9", "a.txt")) == r"C:\new\u00e9"


@pytest.mark.parametrize(
    ("declared", "encoding"),
    [
        ("iso-8859-8-i", "cp1255"),
        ("windows-874", "cp874"),
        ("x-sjis", "cp932"),
        ("Windows-31J", "cp932"),
        ("gb_2312-80", "gb18030"),
        ("ks_c_5601-1989", "cp949"),
        ("x-cp1251", "cp1251"),
        ("x-mac-roman", "mac_roman"),
        ("utf8", "utf-8"),
        ("utf-16", "utf-8"),
        ("UTF-16LE", "utf-8"),
    ],
)
def test_a_web_page_calls_its_encoding_what_the_web_does(desk: Desk, declared: str, encoding: str) -> None:
    """Python knows fewer names; and what can be read as ASCII is no UTF-16."""
    word = {"cp1255": "שלום", "cp874": "ไทย", "cp932": "会議", "gb18030": "会议", "cp949": "회의", "cp1251": "мир"}
    page = f'<html><head><meta charset="{declared}"></head><body><p>{word.get(encoding, "été")}</p></body></html>'
    document = desk.read(page.encode(encoding), "a.html")
    assert text_of(document).strip() == word.get(encoding, "été")
    assert not document.notes


@pytest.mark.parametrize(
    ("page", "shown"),
    [
        ("<ul><li><p>one</p><p>two</p></li><li>three</li></ul>", "- one\n\ntwo\n\n- three"),
        ("a<br>b<br><br>c", "a\nb\n\nc"),
        ("<pre>a  b\n  c</pre>d", "a  b\n  c\n\nd"),
        ("<table><tr><td><p>a</p><p>b</p></td><td>c</td></tr></table>", "a b | c"),
        ("<table><tr><td><h1>a</h1><p>b</p></td></tr></table>", "a\n\nb"),
        (f"<table><tr><td><p>a</p><p>{'b ' * 1500}</p></td><td>c</td></tr></table>", f"a\n\n{'b ' * 1499}b | c"),
        ("<table><tr><td>a<table><tr><td>b</td><td>c</td></tr></table></td></tr></table>", "a\n\nb | c"),
        ("<button>Send</button> <input type=submit value=Go><input type=hidden value=x><input placeholder=Name>", None),
        ("<label>Note</label><textarea>typed</textarea><label>Name</label>", "Note typed Name"),
        ("<textarea>typed</textarea><select><option>x</select>", "typed"),
        ("<svg><title>x</title><desc>x</desc><style>x</style><text>one</text><text>two</text></svg>", "one\ntwo"),
        ("<math><mi>a</mi><annotation>x</annotation></math>", "a"),
        ("<video>x</video><canvas>x</canvas><object>x</object><template>x</template><!-- x -->b", "b"),
        ("<a href=x>link</a>&nbsp;&amp;&eacute;&#x4e2d;&lt;b&gt;", "link &é中<b>"),
        ("<p>x<sup>2</sup>, <b>bo</b>ld</p>", "x2, bold"),
        ("<dl><dt>term<dd>what it is</dl>", "term\nwhat it is"),
        ("<nav><a href=/a>Home</a><a href=/b>Shop</a></nav>", "Home Shop"),
        ("<a href=/a>whole</a><a href=/a>sale</a> <a id=x></a>w<a>or</a>d", "wholesale word"),
        ("<pre><a href=/a>os</a><a href=/b>.path</a></pre>", "os.path"),
        ("<button>Buy</button><button>Keep</button>", "Buy Keep"),
        ("Donau&shy;dampf&shy;schiff", "Donaudampfschiff"),
        ("a\x01\x02b\x03c" + "d" * 200, "abc" + "d" * 200),
    ],
)
def test_lines_stand_where_a_browser_breaks_them(desk: Desk, page: str, shown: str | None) -> None:
    """Words whole, paragraphs apart, fields of a row together, columns of a page as paragraphs."""
    shown = "Send Go Name" if shown is None else shown
    assert text_of(desk.read(f"<html><body>{page}</body></html>".encode(), "a.html")).strip() == shown


def test_a_page_in_pieces_is_the_same_page(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """However the parser is fed."""
    piece = "<p>one  <b>two</b> three</p><pre>a  b</pre><ul><li>x <li> y</ul><a href=x>u</a><a href=y>v</a> "
    page = f"<html><body>{piece * 40}</body></html>".encode()
    whole = text_of(desk.read(page, "a.html"))
    for size in (1, 7, 50):
        monkeypatch.setattr(markup, "_FEED_CHARS", size)
        assert text_of(desk.read(page, "a.html")) == whole


def test_text_is_cleaned_as_sign_by_sign() -> None:
    """Every character by itself, and any mixture: control characters and soft hyphens go, breaks stay."""
    kept = dict.fromkeys(code for code in (*range(0x20), *range(0x7F, 0xA0), 0xAD) if code not in (0x09, 0x0A))
    table: dict[int, str | None] = {**kept, **dict.fromkeys((0x0B, 0x0C, 0x0D, 0x85), "\n")}
    signs = [chr(code) for code in (*range(0x300), *range(0xD7F0, 0xE010), 0x1F600)]
    luck = random.Random(5)
    for text in (*signs, *("".join(luck.choices(signs, k=9)) for _ in range(3000))):
        plain = re.sub("[\ud800-\udfff]", "\ufffd", text.replace("\r\n", "\n")).translate(table)
        assert clean(text) == plain


def test_a_web_page_is_its_words(desk: Desk) -> None:
    """No script, no style; a title; lines and rows where a browser shows them."""
    page = """<!DOCTYPE html><html><head><title>Mills &amp; more</title><style>p {color: red}</style>
    <script>var hidden = 1;</script></head><body><h1>Mills</h1><p>One
    two<br>three</p><ul><li>first</li><li>second</li></ul><table><tr><th>a</th><th>b</th></tr><tr><td>1</td>
    <td>2</td></tr></table><img alt="a wheel"><noscript>hidden</noscript></body></html>"""
    document = desk.read(page.encode(), "a.html")
    lines = [line for line in text_of(document).splitlines() if line]
    assert document.title == "Mills & more"
    assert lines == ["Mills", "One two", "three", "- first", "- second", "a | b", "1 | 2", "a wheel"]


@pytest.mark.parametrize(
    ("page", "shown"),
    [
        ("<div>a<div hidden>x<div>y</div>z</div>b</div>", "ab"),
        ("<p hidden>x<p>b", "b"),
        ('<ul><li style="display:none">x<li>b</ul>', "- b"),
        ('<span style="color: red; Display : none !important">x</span>b', "b"),
        ("<table><tr><td>a</td><td hidden>x</td><td>c</td></tr></table>", "a | c"),
        ('<img hidden alt="x"><input hidden><br hidden>b', "b"),
        ("<embed hidden>b<source hidden>c", "bc"),
        ("</div><div hidden>x</div></div>b", "b"),
        ('<body style="display:none">b', "b"),
        ('<p style="display:block">b</p><p hidden="until-found">c', "b\n\nc"),
    ],
)
def test_what_a_browser_does_not_show_is_not_read(desk: Desk, page: str, shown: str) -> None:
    """Elements with `hidden` or display:none, with all that is in them and nothing that is not."""
    assert text_of(desk.read(f"<html>{page}".encode(), "a.html")).strip() == shown


def test_a_web_page_says_its_encoding(desk: Desk) -> None:
    """In a tag, which is believed before any guess."""
    page = '<html><head><meta charset="koi8-r"></head><body><p>мир</p></body></html>'
    assert "мир" in text_of(desk.read(page.encode("koi8-r"), "a.html"))


@pytest.mark.parametrize("tag", ["<div>", "<b>", "<table><tr><td>", "<ul><li>", "<p "])
def test_depth_does_not_matter(desk: Desk, tag: str) -> None:
    """100,000 tags within each other; the word at the bottom is found, or nothing is, and nobody is hurt."""
    text = text_of(desk.read(b"<html><body>" + tag.encode() * 100_000 + b">bottom", "a.html"))
    assert "bottom" in text or tag == "<p "


def test_the_length_of_a_line_does_not_matter(tmp_path: Path) -> None:
    """One of ten million characters is read up to the limit only."""
    document = Desk(tmp_path, {"max_text_bytes": 1_000_000}).read(b"word " * 2_000_000, "a.txt")
    assert len(text_of(document)) == 1_000_000
    assert document.notes == ("partial: the text was cut at 1 MB; the file has 10 MB",)


def test_xml_is_its_words_and_its_entities_stay_closed(desk: Desk) -> None:
    """A billion laughs are none."""
    rows = "".join(f'<!ENTITY l{at} "{f"&l{at - 1};" * 10}">' for at in range(1, 10))
    data = f'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY l0 "ha">{rows}]><a><b>one</b><c>two &l9;</c></a>'
    text = text_of(desk.read(data.encode(), "a.xml"))
    assert text.split()[:2] == ["one", "two"]
    assert len(text) < 100


def test_a_drawing_is_what_it_says(desk: Desk) -> None:
    """Its labels, title and description; not how it is painted or what it was made with."""
    drawing = """<svg xmlns="http://www.w3.org/2000/svg"><title>Plan</title><metadata><rdf>x</rdf></metadata>
    <defs><style>.x {fill: red}</style></defs><script>x()</script><text>North <tspan>gate</tspan></text></svg>"""
    assert text_of(desk.read(drawing.encode(), "a.svg")).split() == ["Plan", "North", "gate"]
    icon = b"<svg><style>.x {fill: red}</style><path/></svg>"
    assert text_of(desk.read(icon, "a.svg")) == ""


def test_xml_reads_no_other_file(desk: Desk, tmp_path: Path) -> None:
    """An entity that points to a secret stays what it is."""
    (tmp_path / "secret").write_text("the password")
    data = f'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY s SYSTEM "file://{tmp_path}/secret">]><a>so &s; it is</a>'
    assert "password" not in text_of(desk.read(data.encode(), "a.xml"))


def test_blanks_only_are_a_document_without_text(desk: Desk) -> None:
    """The file is not empty: it has bytes."""
    assert text_of(desk.read(b" \n\n", "a.txt")).strip() == ""
    assert desk.refusal(b"", "a.txt")[0] is Reason.EMPTY
