"""The words that people use for shapes, colours, sizes and relations, in four languages.

The first word of each entry is the one that dps-nano answers with.
"""

from dps_hf.nano.scenes import COLOURS, SHAPES


# Shapes: singular, plural, gender


def _read_nouns(text: str) -> dict[str, tuple[tuple[str, str, str], ...]]:
    """Reads a line of "singular/plural/gender" for each of `SHAPES`."""
    lines = [line.strip() for line in text.strip().splitlines()]
    found = [tuple(tuple(f"{noun.strip()}//".split("/")[:3]) for noun in line.split(",")) for line in lines]
    return dict(zip(SHAPES, found, strict=True))  # type: ignore[arg-type]


NOUNS = {
    "en": _read_nouns(
        """circle/circles, disc/discs, disk/disks, ball/balls, dot/dots, round shape/round shapes
        square/squares, box/boxes, block/blocks, square shape/square shapes
        triangle/triangles, triangle shape/triangle shapes, pyramid/pyramids
        star/stars, five-pointed star/five-pointed stars, star shape/star shapes
        cross/crosses, plus/pluses, plus sign/plus signs, x/x's
        heart/hearts, love heart/love hearts, heart shape/heart shapes
        diamond/diamonds, rhombus/rhombuses, lozenge/lozenges, diamond shape/diamond shapes"""
    ),
    "de": _read_nouns(
        """Kreis/Kreise/m, Scheibe/Scheiben/f, Punkt/Punkte/m, Ball/Bälle/m, Kugel/Kugeln/f
        Quadrat/Quadrate/n, Viereck/Vierecke/n, Kasten/Kästen/m
        Dreieck/Dreiecke/n
        Stern/Sterne/m
        Kreuz/Kreuze/n, Plus/Plus/n, Pluszeichen/Pluszeichen/n
        Herz/Herzen/n
        Karo/Karos/n, Raute/Rauten/f, Rhombus/Rhomben/m"""
    ),
    "es": _read_nouns(
        """círculo/círculos/m, disco/discos/m, bola/bolas/f, punto/puntos/m, pelota/pelotas/f
        cuadrado/cuadrados/m, caja/cajas/f
        triángulo/triángulos/m
        estrella/estrellas/f
        cruz/cruces/f, equis/equis/f
        corazón/corazones/m
        rombo/rombos/m, diamante/diamantes/m"""
    ),
    "zh": _read_nouns(
        """圆形, 圆, 圆圈, 圆球, 球, 圆点
        正方形, 方块, 方形, 四方形
        三角形, 三角
        星形, 星星, 星, 五角星
        十字, 十字形, 加号, 叉叉
        心形, 心, 爱心
        菱形, 钻石形"""
    ),
}


# Colours


def _read_colours(text: str) -> dict[str, tuple[str, ...]]:
    lines = [line.strip() for line in text.strip().splitlines()]
    return dict(zip(COLOURS, (tuple(word.strip() for word in line.split(",")) for line in lines), strict=True))


PAINTS = {
    "en": _read_colours(
        """red, crimson, scarlet, cherry, ruby, cherry red
        green, emerald, grass green, forest green, leaf green
        blue, navy, navy blue, azure, sky blue, royal blue
        yellow, golden, gold, lemon, lemon yellow, sunny yellow
        orange, tangerine, amber
        purple, violet, lilac, plum
        pink, rose, fuchsia, hot pink, rosy
        black, jet black, ebony, pitch black"""
    ),
    # Inflected. Those that end in "farben" or "a" are other words for those that take no ending.
    "de": _read_colours(
        """rot, knallrot, hellrot, dunkelrot, rotfarben
        grün, hellgrün, dunkelgrün, grasgrün
        blau, hellblau, dunkelblau, himmelblau, marineblau
        gelb, hellgelb, golden, zitronengelb
        orangefarben, orange, orang
        violett, lila, purpurn, dunkelviolett
        rosafarben, rosa, pink, pinkfarben
        schwarz, tiefschwarz, pechschwarz"""
    ),
    "es": _read_colours(
        """rojo, rojo vivo, carmesí, escarlata
        verde, verde claro, verde oscuro, esmeralda
        azul, azul marino, celeste, azul claro, azul oscuro
        amarillo, dorado, amarillo limón
        naranja, anaranjado, color naranja
        morado, violeta, lila, púrpura, color morado
        rosa, rosado, fucsia, color rosa
        negro, negro azabache"""
    ),
    "zh": _read_colours(
        """红色, 红, 深红色, 鲜红色
        绿色, 绿, 深绿色, 浅绿色, 草绿色
        蓝色, 蓝, 深蓝色, 天蓝色, 浅蓝色
        黄色, 黄, 金色, 金黄色
        橙色, 橘色, 橘黄色, 橙
        紫色, 紫, 深紫色, 紫罗兰色
        粉色, 粉红色, 粉, 玫红色
        黑色, 黑, 纯黑色"""
    ),
}
UNINFLECTED = ("lila", "rosa", "pink", "orange")  # in German; "ein orange Stern" is said beside "ein oranger Stern"
FIXED = ("naranja", "rosa", "violeta", "lila", "fucsia", "celeste", "esmeralda", "púrpura", "escarlata", "carmesí")
"""Spanish colours without gender; plural they mostly stay as they are. So do those of two words."""

SHADES = {"en": ("bright {}", "dark {}", "light {}", "deep {}", "{}-coloured", "{}-colored", "{} coloured")}
"""What may come around the first word of a colour."""

SIZE_WORDS: dict[str, dict[str, tuple[str, ...]]] = {
    "en": {
        "small": ("small", "little", "tiny", "teeny", "mini", "teeny tiny"),
        "big": ("big", "large", "huge", "giant", "great big", "enormous"),
    },
    "de": {"small": ("klein", "winzig"), "big": ("groß", "riesig", "gewaltig")},
    "es": {"small": ("pequeño", "chiquito", "pequeñito", "diminuto"), "big": ("grande", "enorme", "gigante")},
    "zh": {"small": ("小", "小小的", "很小的", "小的"), "big": ("大", "大大的", "很大的", "大的", "巨大的")},
}

NUMBERS = {
    "en": {1: ("a", "one", "1", "a single", "just one"), 2: ("two", "2", "a couple of", "a pair of", "two"),
           3: ("three", "3"), 4: ("four", "4")},
    "de": {1: ("ein", "1", "ein einziges"), 2: ("zwei", "2", "ein Paar", "zwei"), 3: ("drei", "3"), 4: ("vier", "4")},
    "es": {1: ("un", "1", "un solo"), 2: ("dos", "2", "un par de", "dos"), 3: ("tres", "3"), 4: ("cuatro", "4")},
    "zh": {1: ("一", "1"), 2: ("两", "2", "二"), 3: ("三", "3"), 4: ("四", "4")},
}  # fmt: skip

JOINTS = {
    "en": (" and ", " and ", ", ", " & ", " with ", " + ", " plus ", " and also ", " along with ", " together with ",
           " next to ", " beside ", " as well as ", " and then "),
    "de": (" und ", " und ", ", ", " & ", " + ", " und dazu ", " und auch "),
    "es": (" y ", " y ", ", ", " & ", " + ", " y también ", " más ", " junto a ", " con "),
    "zh": ("和", "和", "、", "，", "跟", "与", "还有", "以及", "加"),
}  # fmt: skip
"""What comes between two things, or before the last of several."""

OPENINGS = {
    "en": (
        "hi, ",
        "hello, ",
        "hey ",
        "hey, ",
        "ok, ",
        "okay ",
        "so ",
        "now, ",
        "thanks! ",
        "great, ",
        "hello! ",
        "um, ",
    ),
    "de": ("hallo, ", "hi, ", "hey, ", "ok, ", "also ", "danke! ", "gut, ", "guten Tag, "),
    "es": ("hola, ", "hola! ", "oye, ", "ok, ", "bueno, ", "gracias! ", "buenas, "),
    "zh": ("你好，", "嗨，", "好的，", "谢谢，", "那么，", "您好，"),
}
CLOSINGS = {
    "en": (" please", ", please", " thanks", ", thanks", " pls", ", thank you", " plz", " for me", " ok?", " :)"),
    "de": (" bitte", ", bitte", ", danke", " danke", " :)", ", ja?"),
    "es": (" por favor", ", por favor", ", gracias", " porfa", " :)"),
    "zh": ("，谢谢", "，好吗", "，拜托", "谢谢"),
}
