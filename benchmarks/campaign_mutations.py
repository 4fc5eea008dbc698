"Changes of valid files for campaign.py: bits, runs, cuts, and numbers at the places where a format keeps them."
import io
import json
import re
import struct
import zipfile
import zlib

NUMBERS = [0, 1, 2, 3, 7, 8, 255, 256, 2**15, 2**16-1, 2**24, 2**31-1, 2**31, 2**32-1, 2**63-1, -1, -2**31]
VALUES = [*NUMBERS, 10**9, 1e400, float('nan'), -.5, None, True, '', '0', '..', '/', '<i4', '|O', 'pickle', 'x'*10_000,
          [], {}, [0], [[1]], {'name': 'x'}, {'id': 'zlib'}]
TYPES = [b"'|O'", b"'<i8'", b"'>f4'", b"'<c8'", b"'|V8'", b"'<M8[s]'", b"'|S9'", b"[('a', '<i4')]", b"'<u4'", b"'x'"]
SIGNS = [b'\0', b'"', b"'", b',', b';', b'\t', b'\n', b'\r', b'\xff\xfe', b'\xef\xbb\xbf', b'\x1a', b'=', b'<', b'&a;']


def pick(rng, things): return things[rng.integers(len(things))]


def another(rng, number):
    "A number in place of another: one of those where counting goes wrong, or near the old one, or much larger"
    return int(pick(rng, [*NUMBERS, number+1, number-1, number*2, number*1000, number//2]))


def change_bytes(rng, data):
    "Bits flipped; bytes overwritten, cut, doubled, moved in or filled with one value; a binary number replaced"
    if not data: return rng.bytes(int(rng.integers(1, 20)))
    at, n = int(rng.integers(len(data))), int(2**rng.uniform(0, 9))
    way = int(rng.integers(8))
    if way == 0:
        new = bytearray(data)
        for _ in range(min(n, 8)): new[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        return bytes(new)
    if way == 1: return data[:at] + rng.bytes(n) + data[at+n:]
    if way == 2: return data[:at] + bytes([pick(rng, [0, 255, 32, 48])])*n + data[at+n:]
    if way == 3: return data[:at] if rng.integers(2) else data[:at] + data[at+n:]
    if way == 4: return data[:at] + rng.bytes(n) + data[at:]
    if way == 5: return data[:at] + data[at:at+n]*int(pick(rng, [2, 3, 100])) + data[at+n:]
    if way == 6:
        to = int(rng.integers(len(data)))
        return data[:to] + data[at:at+n] + data[to+n:]
    size, order = int(pick(rng, [1, 2, 4, 8])), pick(rng, ['little', 'big'])
    number = another(rng, int.from_bytes(data[at:at+size], order)) % 256**size
    return data[:at] + number.to_bytes(size, order) + data[at+size:]


def change_text(rng, data):
    "A number that is written in digits replaced, or a sign put in that means something to a table or a document"
    found = list(re.finditer(rb'\d+', data))
    if found and rng.integers(3):
        digits = pick(rng, found)
        return data[:digits.start()] + str(another(rng, int(digits[0][:20]))).encode() + data[digits.end():]
    at = int(rng.integers(len(data)+1))
    return data[:at] + pick(rng, SIGNS)*int(pick(rng, [1, 1, 2, 1000])) + data[at:]


def png_parts(data):
    "The chunks of a PNG: (kind, content)"
    parts, at = [], 8
    while at+12 <= len(data):
        n, kind = struct.unpack_from('>I4s', data, at)
        parts.append((kind, data[at+8:at+8+n]))
        at += 12+n
    return parts


CHUNKS = [b'tRNS', b'sBIT', b'PLTE', b'gAMA', b'iCCP', b'zTXt', b'iTXt', b'tEXt', b'eXIf', b'acTL', b'fdAT']


def png_of(parts):
    body = b''.join(struct.pack('>I', len(c)) + k + c + struct.pack('>I', zlib.crc32(k+c)) for k, c in parts)
    return b'\x89PNG\r\n\x1a\n' + body


def change_png(rng, data):
    "A chunk changed, dropped, doubled, moved or put in, with a correct checksum; or the pixels before compression"
    parts = png_parts(data)
    if not parts: return change_bytes(rng, data)
    i = int(rng.integers(len(parts)))
    kind, content = parts[i]
    way = int(rng.integers(7))
    if way == 0:
        head = list(struct.unpack('>IIBBBBB', parts[0][1][:13].ljust(13, b'\0')))
        k = int(rng.integers(7))
        head[k] = another(rng, head[k]) % (2**32 if k < 2 else 256) if rng.integers(2) else int(rng.integers(1, 17))
        parts[0] = parts[0][0], struct.pack('>IIBBBBB', *head)
    elif way == 1: parts[i] = kind, change_bytes(rng, content)
    elif way == 2: parts.insert(int(rng.integers(len(parts))), parts.pop(i) if rng.integers(2) else parts[i])
    elif way == 3: del parts[i]
    elif way == 4:
        kind = pick(rng, CHUNKS)
        packed = zlib.compress(bytes(int(pick(rng, [10, 10**7]))), 1)
        content = pick(rng, [rng.bytes(int(rng.integers(9))), b'a\0\0'+packed, struct.pack('>II', 2**31-1, 0)])
        parts[i:i] = [(kind, content)]*int(pick(rng, [1, 1, 2, 2000]))
    elif way == 5:
        at = 8 + sum(12+len(c) for _, c in parts[:i])
        whole = png_of(parts)
        return whole[:at] + struct.pack('>I', another(rng, len(content)) % 2**32) + whole[at+4:]
    else:
        try: pixels = zlib.decompress(b''.join(c for k, c in parts if k == b'IDAT'))
        except zlib.error: return change_bytes(rng, data)
        packed = zlib.compress(change_bytes(rng, pixels))
        cut = int(rng.integers(len(packed)+1))
        others = [p for p in parts if p[0] != b'IDAT']
        parts = [*others[:-1], (b'IDAT', packed[:cut]), (b'IDAT', packed[cut:]), *others[-1:]]
    return png_of(parts)


def tiff_entries(data):
    "Places of the numbers in the directories of a TIFF: (at, layout)"
    places, order = [], '<' if data[:2] == b'II' else '>'
    big = data[2:4] in (b'+\0', b'\0+')
    word, count, value = ('Q', 'Q', 8) if big else ('I', 'H', 4)
    try:
        at = struct.unpack_from(order+word, data, 8 if big else 4)[0]
        places.append((8 if big else 4, order+word))
        for _ in range(20):
            n = struct.unpack_from(order+count, data, at)[0]
            places.append((at, order+count))
            at += struct.calcsize('<'+count)
            for _ in range(min(n, 50)):
                kind = struct.unpack_from(order+'H', data, at+2)[0]
                layout = {1: 'B', 3: 'H', 16: 'Q'}.get(kind, 'I')
                places += [(at, order+'H'), (at+2, order+'H'), (at+4, order+word)] + [(at+4+value, order+layout)]*3
                inside = struct.unpack_from(order+word, data, at+4+value)[0]
                if struct.unpack_from(order+word, data, at+4)[0] > 1: places.append((inside, order+layout))
                at += 4+2*value
            places.append((at, order+word))
            at = struct.unpack_from(order+word, data, at)[0]
            if not at: break
    except (struct.error, OverflowError): pass
    return [(at, layout) for at, layout in places if at+struct.calcsize(layout) <= len(data)]


def change_tiff(rng, data):
    "A tag, type, count, value or pointer of a directory replaced; or a number in its texts"
    places = tiff_entries(data)
    if not places: return change_bytes(rng, data)
    if not rng.integers(4) and (text := re.search(rb'<\?xml.*?</OME>|ImageJ=[^\0]*|\{"shape[^\0]*', data, re.DOTALL)):
        changed = change_text(rng, text[0])[:len(text[0])].ljust(len(text[0]))
        return data[:text.start()] + changed + data[text.end():]
    at, layout = pick(rng, places)
    old, = struct.unpack_from(layout, data, at)
    if rng.integers(3): number = another(rng, old)
    else: number = struct.unpack_from(layout, data, pick(rng, [p for p in places if p[1] == layout])[0])[0]
    new = bytearray(data)
    struct.pack_into(layout, new, at, number % 256**struct.calcsize(layout))
    return bytes(new)


def change_jpg(rng, data):
    "A segment dropped, doubled, moved, or changed in kind, length or content; or the codes of the pixels"
    parts, at = [], 2
    while at+4 <= len(data) and data[at] == 255 and data[at+1] != 0xda:
        n = 2 + struct.unpack_from('>H', data, at+2)[0]
        parts.append(data[at:at+n])
        at += n
    rest = data[at:]
    if not parts: return change_bytes(rng, data)
    i, way = int(rng.integers(len(parts))), int(rng.integers(7))
    if way == 0: del parts[i]
    elif way == 1: parts.insert(int(rng.integers(len(parts))), parts[i])
    elif way == 2: parts.insert(int(rng.integers(len(parts))), parts.pop(i))
    elif way == 3: parts[i] = b'\xff' + bytes([pick(rng, b'\xc0\xc2\xc4\xdb\xdd\xe1\xda')]) + parts[i][2:]
    elif way == 4:
        parts[i] = parts[i][:2] + struct.pack('>H', another(rng, len(parts[i])) % 2**16) + parts[i][4:]
    elif way == 5:
        content = change_bytes(rng, parts[i][4:])[:65000]
        parts[i] = parts[i][:2] + struct.pack('>H', len(content)+2) + content
    else: rest = rest[:12] + change_bytes(rng, rest[12:])
    return data[:2] + b''.join(parts) + rest


def change_json(rng, data):
    "A value in a JSON text replaced, dropped or doubled, or a key renamed"
    try: tree = json.loads(data)
    except ValueError: return change_bytes(rng, data)
    places, to_visit = [], [tree] if isinstance(tree, (dict, list)) else []
    while to_visit:
        node = to_visit.pop()
        for key in (node if isinstance(node, dict) else range(len(node))):
            places.append((node, key))
            if isinstance(node[key], (dict, list)): to_visit.append(node[key])
    if not places: return json.dumps(pick(rng, VALUES)).encode()
    node, key = pick(rng, places)
    way, old = int(rng.integers(5)), node[key]
    if way == 0: del node[key]
    elif way == 1 and isinstance(node, dict): node[pick(rng, ['x', 'name', 'shape', ''])] = node.pop(key)
    elif way == 1: node.insert(key, old)
    elif way == 2 and isinstance(old, int): node[key] = another(rng, old)
    elif way == 3 and isinstance(old, list): node[key] = old*int(pick(rng, [2, 3, 1000]))
    else: node[key] = pick(rng, VALUES)
    return json.dumps(tree).encode()


def change_lif(rng, data):
    "A number or a sign in the description of a file of Leica, whose length is stated again; or a number before a block"
    if len(data) < 20: return change_bytes(rng, data)
    n = 2*struct.unpack_from('<I', data, 9)[0]
    if rng.integers(4):
        text = change_text(rng, data[13:13+n].decode('utf-16-le', 'replace').encode())
        text = text.decode('utf-8', 'replace').encode('utf-16-le', 'replace')
        return data[:9] + struct.pack('<I', len(text)//2) + text + data[13+n:]
    blocks = [found.start() for found in re.finditer(b'p\0\0\0', data)]
    return change_number(rng, data, pick(rng, blocks or [0]) + int(pick(rng, [0, 4, 8, 9, 13, 17, 18])))


def change_number(rng, data, at):
    "A number at a place replaced by another"
    layout = pick(rng, ['<I', '<Q'])
    if not 0 <= at <= len(data)-8: return change_bytes(rng, data)
    new = bytearray(data)
    number = another(rng, struct.unpack_from(layout, data, at)[0])
    struct.pack_into(layout, new, at, number % 256**struct.calcsize(layout))
    return bytes(new)


def change_czi(rng, data):
    "A number in the header, the directory or before a piece of pixels of a CZI replaced; or a text in its metadata"
    segments = [found.start() for found in re.finditer(b'ZISRAW[A-Z]+', data)]
    if not rng.integers(4) and (xml := re.search(rb'<ImageDocument>.*</ImageDocument>', data, re.DOTALL)):
        changed = change_text(rng, xml[0])[:len(xml[0])].ljust(len(xml[0]))
        return data[:xml.start()] + changed + data[xml.end():]
    entries = [found.start() for found in re.finditer(b'DV', data)] if rng.integers(2) else segments
    return change_number(rng, data, pick(rng, entries or [0]) + int(rng.integers(0, 160)))


def change_nd2(rng, data):
    "A number in the metadata or in the list of parts of an ND2 replaced, or one of its lengths"
    parts = [found.start() for found in re.finditer(struct.pack('<I', 0x0abeceda), data)]
    names = [found.end() for found in re.finditer(rb'(?:Image\w+(?:\|\d+)?!)|(?:[a-zA-Z]\0){4,}\0\0', data)]
    places = [at+int(rng.integers(0, 16)) for at in parts] if rng.integers(3) == 0 else names
    return change_number(rng, data, pick(rng, places or [0]))


def change_npy(rng, data):
    "The header of an array changed: its type, order or shape"
    if rng.integers(2): return change_bytes(rng, data)
    old = data[10:128]
    if rng.integers(2): new = re.sub(rb"'[<>|][a-z]\d'", pick(rng, TYPES), old)
    else: new = change_text(rng, old)
    return data[:10] + new[:len(old)].ljust(len(old)) + data[128:]


def change_workbook(rng, data):
    "A part of a workbook changed, dropped or doubled, in a whole archive"
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as z: parts = {name: z.read(name) for name in z.namelist()}
    except Exception: return change_bytes(rng, data)
    name = pick(rng, [*parts])
    way = int(rng.integers(5))
    if way == 0: parts.pop(name)
    elif way == 1: parts[pick(rng, [*parts])] = parts[name]
    elif way == 2: parts[name] = change_bytes(rng, parts[name])
    else:
        name = pick(rng, [n for n in parts if 'sheet' in n or 'styles' in n] or [name])
        parts[name] = change_text(rng, parts[name])
    with zipfile.ZipFile(out := io.BytesIO(), 'w', zipfile.ZIP_DEFLATED) as z:
        for name, content in parts.items(): z.writestr(name, content)
    return out.getvalue()


BY_ENDING = {'.png': change_png, '.tif': change_tiff, '.jpg': change_jpg, '.npy': change_npy, '.xlsx': change_workbook,
             '.lif': change_lif, '.czi': change_czi, '.nd2': change_nd2, '.csv': change_text, '.json': change_json,
             '.zattrs': change_json, '.zarray': change_json, '.zgroup': change_json}


DESCRIPTIONS = ('.json', '.zattrs', '.zarray', '.xml', '.HTD', '.mlf', '.mrf', '.mes')

def change_files(rng, files):
    "One to four changes of the files of a picture or table, {name: content}; a file of several may be missing"
    files = dict(files)
    for _ in range(1 + int(rng.geometric(.6) - 1) % 4):
        described = [name for name in files if name.endswith(DESCRIPTIONS)]
        name = pick(rng, described if described and rng.integers(2) else [*files])
        if len(files) > 1 and not rng.integers(20):
            other = files.pop(name)
            if rng.integers(2): files[pick(rng, [*files])] = other
            continue
        change = BY_ENDING.get('.' + name.rpartition('.')[2], change_bytes)
        files[name] = (change if rng.integers(4) else change_bytes)(rng, files[name])[:2**22]
    return files
