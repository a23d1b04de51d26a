"""Bytes -> text, whatever they were encoded in.

Rule: strict first. A byte order mark, then what is declared if it fits without an error, then UTF-8, then a guessed
legacy encoding; only the last resort replaces what it cannot read. Guesses and replacements are said.

A guess weighs every encoding by how likely its letters are in one of the languages that were written in it: the
logarithm of each letter's share, less where it stands as letters do not (a capital inside a word, a sign between two
letters, a Greek letter beside a Latin one).
"""

from __future__ import annotations

import codecs
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import BinaryIO, Final

from engine.workers.types import encoding_of_start

#: The sample in which the first bytes beyond ASCII stand.
_SAMPLE_BYTES: Final = 32_768
#: Of the sample, lines with bytes beyond ASCII that are weighed. Two sentences decide: of texts of 250 letters
#: in 40 languages and encodings 99.9 % were right.
_CLUE_BYTES: Final = 1_000
_BLOCK_BYTES: Final = 1 << 18
#: What is left to charset-normalizer when none of the languages below makes sense of the bytes.
_CANDIDATES: Final = [
    *("cp1252", "cp1250", "cp1257", "cp1258", "cp874", "mac_roman", "mac_cyrillic", "iso8859_5", "iso8859_7", "cp850"),
    *("cp932", "euc_jp", "gb18030", "big5", "cp949"),
]
#: The letters beyond ASCII of each language, the most frequent first, and the encodings in which it was written; of
#: those that share theirs with others, words that are frequent and have only letters of ASCII.
_LANGUAGES: Final[tuple[tuple[tuple[str, ...], tuple[tuple[str, str], ...]], ...]] = (
    (
        ("cp1252", "cp850", "mac_roman"),
        (
            ("üäöß", "der die das und ist nicht ein eine zu den mit von auf im dem des sich auch wir sie werden bitte"),
            ("éàèêçîôùûâëïœ", "le la les et est des un une du dans que pour pas sur avec au ce nous vous je ne par il"),
            ("óíáéñú¿¡ü", "el la los las de que en un una por con no se su al lo como para del es y o si este esta"),
            ("ãçáéóêíõúâàô", "o a os as de que em um uma por com se no na do da dos das para ao mais este esta e ou"),
            ("èàòùìé", "il la di che e un una per non con del della sono nel si come alla dei gli questo anche le o"),
            ("äåöé", "och att det som en av till den med har inte om ett var kan ska eller hej vi jag du"),
            ("åøæé", "og at det som en af av til den med har ikke om et var kan skal eller hei hej vi jeg du for er"),
            ("äö", "ja on ei se ett mutta ole kun niin tai voi sen tulee olet"),
            ("ëéïöèü", "de het een en van is niet dat op te zijn voor met aan er ook wij ik je of wordt moet"),
            ("ðáíþóæéöúý", "og er sem ekki til um af en var hann eru eftir eina"),
            ("àéèíóòúç·ïü", "el la els les de que en un una per amb no es del al com o i aquest aquesta"),
            ("äõüö", "ja on ei et see kui ka oma mis selle seda olema"),
            ("éáöüèñçäåøàóíîôâêëïß", "the of and to in is that for was with on are this be have from not you it we"),
            ("ëç", "dhe me nga nuk se ka do ose kjo ky"),
        ),
    ),
    (
        ("cp1250", "iso8859_2", "cp852"),
        (
            ("łęąóśćżńź", "nie na do jest to po od lub dla w z i oraz przez tego jak aby o za czy"),
            ("áíěéýčšžřůúťňďó", "na se je do po pro jako nebo to ve z za s v by aby tento jen od bude"),
            ("áíčéýšžúľťôňäďóĺŕ", "na sa je do po pre ako alebo to vo z za s v by aby tento len od bude nie"),
            ("éáóöőíüúű", "a az nem egy is hogy vagy meg csak ha van de ez ki el kell"),
            ("ăîşţâ", "de la cu nu pe este sau un o din ca ce care mai prin sunt se al ale sunt a fi"),
            ("čšžćđ", "je se na za su od da ili kao ne ni iz po so ali kot ki v bo pri do ta to i u"),
        ),
    ),
    (("cp1254",), (("ıüşçğöİâ", "bir ve bu ile de da daha en ne var gibi olarak olan sonra kadar evet"),)),
    (
        ("cp1257",),
        (
            ("ėųąšįžčūę", "ir yra ne su kad arba tai kaip bet iki nuo jis buvo kas ar"),
            ("āēīšņģļžķūč", "un ir no ar nav vai kas par uz pie bet ka lai to tas kur"),
        ),
    ),
    (
        ("cp1251", "koi8_r", "cp866"),
        (("оеаинтсрвлкмдпуяыьгзбчйхжшюцщэфёъ", ""), ("аиоетнсрвлкдпмзъягбучцжщхйшюфь", "")),
    ),
    (("cp1251", "koi8_u"), (("оанивтреісклудмпязьгчбхйцжїюєшщфґ", ""),)),
    (("cp1253", "iso8859_7"), (("ατοιενσηρςκπυμλίόάέδωγήχθώύφβξζψϊΐ", ""),)),
    (("cp1255",), (("יוהלארמתבשנםעכדחקןפגטצסזךףץ", ""),)),
    (("cp1256",), (("اليمنورتبعدهسفةقأكحجىشصخط،إضءذئغثزظؤ؟آ؛", ""),)),
    (("cp874",), (("านรอกเง่มยลวดทสต้ัปบคแะีิหจไ์ใขพโืชผุูณถซ็ศธษภำฟญ", ""),)),
)
_DENSE: Final = ("euc_jp", "cp932", "gb18030", "big5", "cp949")
#: The characters that make up some half of any Chinese text, and the syllables that do so in Korean.
_OFTEN: Final = frozenset(
    "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里用道行所然家种事成"
    "方多经么去法学如都同现当没动面起看定天分还进好小部其些主样理心她本前开但因只从想实日军者意无力它与长把机十民第公此已工"
    "使情明性知全三又关点正业外将两高间由问很最重并物手应战向头文体政美相见被利什二等产或新己制身果加西月话合回特代内信表化"
    "老给世位次度门任常先海通教儿原东声提立及比员解水名真论处走义各入几口认条平系气题活更别打女变四神总何电数安少报才结反受"
    "這個們來為國說時會對於著過發後裡種經麼學現當沒動還進樣開從實軍無與長機關點業將兩間問應戰頭體見產話給東聲員論處義幾認條"
    "氣題爾別變總電數報結請參議點謝您親愛敬"
    "이다는의에을가고하지를은로기사서도한대으어자시나아리인해있정일수보부라장그전마과스구제원만주상세들여우조회공동신국소오무"
    "분화모계비성적학습니게것년유문내생연경치선교관업방간실용안체물중트터러저거야면때말"
)
#: Signs that any language uses, in words or between them.
_SIGNS: Final = frozenset("\xa0’–“”…„—‘‚«»€£°§±²³µ·×©®™½•")
#: Letters that only end words.
_FINALS: Final = frozenset("ךםןףץς")
_BETWEEN_LETTERS: Final = frozenset("’‘·\xa0–—…\xad")
_ENCODINGS: Final = tuple(dict.fromkeys((*(each for names, _ in _LANGUAGES for each in names), *_DENSE)))
_LATIN: Final = frozenset({"cp1252", "cp850", "mac_roman", "cp1250", "iso8859_2", "cp852", "cp1254", "cp1257"})
#: Of systems before Windows, or beside it.
_OLD: Final = frozenset({"cp850", "mac_roman", "cp852", "cp866"})
#: Where the characters that are taught first stand: (charset, first and last lead byte). Of JIS, GB 2312 and Big5.
_FIRST_LEVELS: Final = {
    "euc_jp": ("euc_jp", 0xB0, 0xCF),
    "cp932": ("euc_jp", 0xB0, 0xCF),
    "gb18030": ("gb2312", 0xB0, 0xD7),
    "big5": ("big5", 0xA4, 0xC6),
}
#: Logarithms: of a sign that any language uses; of a letter that the language has not; of what is no letter at all, and
#: of a byte without a meaning.
_SIGN: Final = math.log(0.02)
_STRANGE: Final = -9.0
_BROKEN: Final = -15.0
#: Between equals Western European wins: most files that say nothing are.
_OTHERS_FIRST: Final = -2.0
_OLD_FIRST: Final = -5.0
#: For each frequent word of a language; more than WORDS_COUNTED say no more.
_WORD_WEIGHT: Final = 1.0
_WORDS_COUNTED: Final = 4
#: Below this a byte nothing has been understood: strange letters all the way.
_SENSELESS: Final = -6.5
_ASCII: Final = bytes(range(0x80))
#: Python calls these text encodings too.
_NOT_CHARSETS: Final = frozenset(
    {"idna", "punycode", "raw-unicode-escape", "unicode-escape", "mbcs", "oem", "undefined"}
)
#: Declared names that writers use for a superset; browsers read them so too (WHATWG Encoding Standard).
_SUPERSETS: Final = {
    "ascii": "utf-8",
    "iso8859-1": "cp1252",
    "iso8859-9": "cp1254",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
    "ks_c_5601-1987": "cp949",
    "iso2022_jp": "iso2022_jp_ext",
    "iso8859-8": "cp1255",
    "iso8859-11": "cp874",
    "tis-620": "cp874",
}
#: Names that the web knows (the same standard) and Python does not, but for "x-" before it.
_LABELS: Final = {
    **dict.fromkeys(("unicode-1-1-utf-8", "unicode20utf8"), "utf-8"),
    **dict.fromkeys(("iso-8859-8-i", "iso-8859-8-e", "csiso88598i", "csiso88598e", "visual", "logical"), "cp1255"),
    **dict.fromkeys(("iso-8859-6-i", "iso-8859-6-e", "csiso88596i", "csiso88596e"), "iso8859-6"),
    **dict.fromkeys(("windows-874", "dos-874"), "cp874"),
    **dict.fromkeys(("windows-31j", "sjis", "cswindows31j"), "cp932"),
    **dict.fromkeys(("gb_2312", "gb_2312-80", "csgb2312", "gbk"), "gb18030"),
    **dict.fromkeys(("cn-big5", "x-big5"), "big5"),
    **dict.fromkeys(("windows-949", "ks_c_5601-1989", "ksc_5601", "cseuckr", "csksc56011987", "iso-ir-149"), "cp949"),
    **dict.fromkeys(("mac", "csmacintosh", "mac-roman"), "mac-roman"),
    **dict.fromkeys(("mac-ukrainian", "mac-cyrillic"), "mac-cyrillic"),
    **dict.fromkeys(("koi", "koi8", "koi8-ru"), "koi8-u"),
    "ansi": "cp1252",
    "euc-jp": "euc_jp",
    "cseucpkdfmtjapanese": "euc_jp",
    "csisolatin9": "iso8859-15",
    "sun_eu_greek": "iso8859-7",
}


#: For people: as the web calls them.
_NAMES: Final = {
    **{f"cp{number}": f"windows-{number}" for number in (*range(1250, 1259), 874)},
    "iso8859_2": "ISO 8859-2",
    "cp932": "Shift_JIS",
    "cp949": "EUC-KR",
    "big5": "Big5",
    "utf-8": "UTF-8",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """encoding: as Python calls it; cut: there was more than the limit; replaced: some bytes could not be read;
    guessed: nothing but the letters themselves told the encoding."""

    text: str
    encoding: str
    cut: bool = False
    replaced: bool = False
    guessed: bool = False

    def notes(self, what: str = "text") -> list[str]:
        """What a reader should know of the decoding of the `what`."""
        name = _NAMES.get(self.encoding, self.encoding.replace("_", "-"))
        guess = [f"the encoding of the {what} was guessed: {name}"] if self.guessed else []
        return [*guess, f"some bytes of the {what} are not {name} and were replaced"] if self.replaced else guess


def decode(data: bytes, declared: str = "") -> Decoded:
    """All of `data`; `declared` is a charset as a header or tag names it."""
    import io

    return decode_stream(io.BytesIO(data), declared=declared, limit_chars=len(data) + 1)


def decode_stream(file: BinaryIO, *, limit_chars: int, declared: str = "") -> Decoded:
    """At most `limit_chars` characters of a file from its beginning, in memory bounded by them."""
    file.seek(0)
    head = file.read(_SAMPLE_BYTES)
    known = encoding_of_start(head)
    escaped = _escaped(head)
    for encoding in (known, _codec(declared), *(escaped or ("utf-8",))):
        if not encoding:
            continue
        try:
            found = _decoded(file, encoding, limit_chars, errors="strict")
            # A byte order mark leaves the order of bytes to the codec; without one it is read off the NULs.
            return replace(found, guessed=encoding == known and encoding.endswith(("-le", "-be")))
        except UnicodeError as error:
            if encoding == "utf-8" and isinstance(error, UnicodeDecodeError):
                head = _around(head, error)
    encoding = known or (escaped[-1] if escaped else detected(head, _codec(declared)))
    guessed = encoding != "utf-8" and not escaped
    try:
        return replace(_decoded(file, encoding, limit_chars, errors="strict"), guessed=guessed)
    except UnicodeError:
        return replace(_decoded(file, encoding, limit_chars, errors="replace"), guessed=guessed)


def detected(sample: bytes, declared: str = "") -> str:
    """The likeliest legacy encoding; UTF-8 for text that is UTF-8 but for some bytes.

    declared: the codec that the text claims and does not keep to; it is taken where no other makes sense either.
    """
    clues = _clues(sample)
    whole, broken = _utf8_in(clues)
    if whole > 4 * broken:
        return "utf-8"
    words = Counter(re.findall(r"[a-z]+", clues.decode("ascii", "replace").lower()))
    # What declares itself was hardly written before there were declarations.
    candidates = [each for each in _ENCODINGS if each not in _OLD] if declared else _ENCODINGS
    best, encoding = max(((_likelihood(clues, words, each), each) for each in candidates), key=lambda found: found[0])
    if best > _SENSELESS * len(clues.translate(None, _ASCII)):
        return encoding
    if declared or whole:
        return declared or "utf-8"
    from charset_normalizer import from_bytes

    other = from_bytes(sample, cp_isolation=_CANDIDATES).best()
    return other.encoding if other is not None and other.encoding != "ascii" else "cp1252"


def _clues(sample: bytes) -> bytes:
    """The lines with bytes beyond ASCII, from the first one on; a long line around it."""
    gathered, length = [], 0
    for match in re.finditer(rb"(?m)^[^\n]*[\x80-\xff][^\n]*\n?", sample):
        found = match.group()
        if len(found) > _CLUE_BYTES:
            first = re.search(rb"[\x80-\xff]", found)
            begin = max(0, (first.start() if first else 0) - 100)
            found = found[begin : begin + _CLUE_BYTES]
        gathered.append(found)
        length += len(found)
        if length >= _CLUE_BYTES:
            break
    return b"".join(gathered)[:_CLUE_BYTES]


def _utf8_in(clues: bytes) -> tuple[int, int]:
    """How many characters beyond ASCII are whole as UTF-8, and how many pieces are broken.

    Sequences of three bytes and more hardly come about by chance: they count for ten.
    """
    damaged = codecs.getincrementaldecoder("utf-8")("replace").decode(clues)
    broken = damaged.count("\ufffd")
    pairs = sum("\x7f" < sign < "\u0800" for sign in damaged)
    longer = sum(sign >= "\u0800" for sign in damaged) - broken
    meant = clues.count(b"\xef\xbf\xbd")
    return pairs + 10 * (longer + meant), broken - meant


def _likelihood(clues: bytes, words: Counter[str], encoding: str) -> float:
    """The logarithm of how likely the bytes beyond ASCII are as letters of this encoding's languages.

    words: how often each stands in the text, of those that are ASCII.
    """
    text = codecs.getincrementaldecoder(encoding)("replace").decode(clues, final=len(clues) < _CLUE_BYTES)
    if encoding in _DENSE:
        signs = Counter(sign for sign in text if sign > "\x7f")
        return _OTHERS_FIRST + sum(count * _dense_weight(sign, encoding) for sign, count in signs.items())
    around = f" {text} "
    places = Counter(around[at.start() : at.start() + 3] for at in re.finditer(r"[^\x00-\x7f]", text))
    latin = encoding in _LATIN
    stands, letters = 0.0, Counter[tuple[str, float]]()
    for place, count in places.items():
        before, sign, after = place[0], place[1], place[2]
        stands += count * _standing(before, sign, after, latin)
        letters[sign, 0.0 if sign.lower() == sign else _as_capital(before, after)] += count
    best = max(
        sum(count * _share(sign, capital, shares) for (sign, capital), count in letters.items())
        + _WORD_WEIGHT * min(_WORDS_COUNTED, sum(words[word] for word in frequent & words.keys()))
        for encodings, rows in _LANGUAGES
        if encoding in encodings
        for shares, frequent in map(_language, rows)
    )
    return best + stands + (_OLD_FIRST if encoding in _OLD else 0.0 if encoding == "cp1252" else _OTHERS_FIRST)


@cache
def _language(row: tuple[str, str]) -> tuple[Mapping[str, float], frozenset[str]]:
    """Logarithms of the shares of its letters, one tenth being left to everything else; and its frequent words.

    They fall to a twentieth from the first letter to the last, as they roughly do in Russian, Spanish and German.
    """
    letters, frequent = row
    weights = [math.exp(-3 * rank / len(letters)) for rank in range(len(letters))]
    shares = {sign: math.log(0.9 * weight / sum(weights)) for sign, weight in zip(letters, weights, strict=True)}
    return shares, frozenset(frequent.split())


def _as_capital(before: str, after: str) -> float:
    """What it costs a capital to stand there: it begins a word, or stands among capitals."""
    if before.isupper() or (after.isupper() and not before.islower()):
        return math.log(0.6)
    return math.log(0.15) if not before.isalpha() else _STRANGE


def _share(sign: str, capital: float, shares: Mapping[str, float]) -> float:
    if sign in shares:
        return shares[sign]
    if sign in _SIGNS:
        return _SIGN
    small = sign.lower()
    if small in shares:
        return max(_STRANGE, shares[small] + capital)
    if sign == "\ufffd" or "\x7f" < sign < "\xa0":
        return _BROKEN
    return _STRANGE if sign.isalpha() else _STRANGE - 1


def _standing(before: str, sign: str, after: str, latin: bool) -> float:
    """What it costs that a sign stands where it does."""
    if not sign.isalpha():
        between = before.isalpha() and after.isalpha() and sign not in _BETWEEN_LETTERS
        between = between and (sign < "\u0300" or sign in "‚„“”")
        opening = sign in "¿¡" and before.isalpha()
        begins = sign == "’" and after.isalpha() and not before.isalpha()
        return -5.0 if between or opening else -3.0 if begins else 0.0
    alone = not before.isalpha() and not after.isalpha()
    cost = -2.0 if alone else 0.0
    cost -= 3.0 * ((sign.islower() and after.isupper()) + after.isdigit())
    cost -= 4.0 * (sign in _FINALS and after.isalpha())
    if latin:
        return cost - 1.5 * (before > "\x7f" and before.isalpha())
    return cost - 4.0 * sum(beside.isascii() and beside.isalpha() for beside in (before, after))


def _dense_weight(sign: str, encoding: str) -> float:
    """The logarithm of the share of a character in Japanese, Chinese or Korean text, roughly."""
    japanese = encoding in ("euc_jp", "cp932")
    if sign == "\ufffd":
        return _BROKEN
    if "\u3040" <= sign < "\u3100":
        return -12.0 if not japanese else -4.5 if sign < "\u30a0" else -6.0
    if sign in "、。「」，：；？！（）《》“”　・":
        return -4.0
    if encoding == "cp949":
        korean = "\uac00" <= sign < "\ud7b0"
        return -5.5 if korean and sign in _OFTEN else -8.0 if korean and _first_byte(sign, "euc_kr") else -13.0
    if not "\u4e00" <= sign < "\ua000":
        return -6.5 if "\uff00" < sign < "\uff5f" else -11.0
    if sign in _OFTEN:
        return -8.0 if japanese else -6.0
    charset, first, last = _FIRST_LEVELS[encoding]
    lead = _first_byte(sign, charset)
    return -8.5 if first <= lead <= last else -12.0 if lead else -14.0


def _first_byte(sign: str, charset: str) -> int:
    """0 where the charset has no such character. Python writes a syllable that EUC-KR lacks letter by letter."""
    try:
        written = sign.encode(charset)
    except UnicodeEncodeError:
        return 0
    return written[0] if len(written) <= 2 else 0


def _decoded(file: BinaryIO, encoding: str, limit_chars: int, *, errors: str) -> Decoded:
    decoder = codecs.getincrementaldecoder(encoding)(errors)
    file.seek(0)
    pieces: list[str] = []
    length = 0
    while length <= limit_chars:
        block = file.read(_BLOCK_BYTES)
        piece = decoder.decode(block, final=not block)
        pieces.append(piece)
        length += len(piece)
        if not block:
            break
    text = "".join(pieces)
    cut = len(text) > limit_chars
    text = text[:limit_chars].removeprefix("\ufeff")
    return Decoded(text=text, encoding=encoding, cut=cut, replaced=errors == "replace" and "\ufffd" in text)


def _codec(declared: str) -> str:
    """The codec of a declared charset, "" when it is none of text."""
    name = declared.strip().strip("\"'")[:100].lower()
    bare = name.removeprefix("x-")
    try:
        info = codecs.lookup(_LABELS.get(bare) or (bare if bare.startswith(("cp", "windows-")) else name))
    except (LookupError, ValueError):
        return ""
    if not info._is_text_encoding or info.name.replace("_", "-") in _NOT_CHARSETS:
        return ""
    return _SUPERSETS.get(info.name, info.name)


def _escaped(head: bytes) -> tuple[str, ...]:
    """The encodings that are pure ASCII to the eye of UTF-8, and say themselves which they are (RFC 1468, RFC 1557)."""
    if b"\x1b$)C" in head:
        return ("iso2022_kr",)
    return ("iso2022_jp", "iso2022_jp_ext") if b"\x1b$B" in head or b"\x1b$@" in head else ()


def _around(head: bytes, error: UnicodeDecodeError) -> bytes:
    """A sample that has the offending bytes in it, also when they come long after an ASCII beginning."""
    if not head.isascii():
        return head
    where = bytes(error.object[max(0, error.start - 256) : error.start + _SAMPLE_BYTES // 2])
    return where or head
