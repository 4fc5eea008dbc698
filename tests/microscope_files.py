"Files as microscopes write them: LIF and ND2, which no program for Python writes, are put together by hand; CZI."
import struct
import zlib

import numpy as np

ND2_MAGIC, ND2_LIST = 0x0abeceda, b'ND2 FILEMAP SIGNATURE NAME 0001!'
ND2_END = b'ND2 CHUNK MAP SIGNATURE 0000001!'
DYES = ['Hoechst', 'Alexa Fluor 488', 'Alexa Fluor 555', 'Alexa Fluor 647']


def part(text): return struct.pack('<IIBI', 0x70, 2*len(text)+5, 0x2a, len(text)) + text.encode('utf-16-le')


channel_xml = ('<ChannelDescription DataType="0" ChannelTag="0" Resolution="{bits}" NameOfMeasuredQuantity="" Min="0" '
               'Max="1" Unit="" LUTName="{lut}" IsLUTInverted="0" BytesInc="{inc}" BitInc="0">{dye}'
               '</ChannelDescription>')
axis_xml = ('<DimensionDescription DimID="{id}" NumberOfElements="{n}" Origin="0" Length="{length}" Unit="m" '
            'BitInc="0" BytesInc="{inc}"/>')
dye_xml = '<ChannelProperty><Key>DyeName</Key><Value>{}</Value></ChannelProperty>'
axes_of_lif = {'X': 1, 'Y': 2, 'Z': 3, 'T': 4, 'λ': 5, 'M': 10}


def lif_of(images, bits=16):
    "The bytes of a LIF; images: {name: (array, its axes, names of dyes or of colours on the screen)}"
    elements, blocks = '', b''
    for i,(name,(a, axes, dyes)) in enumerate(images.items()):
        a, strides = np.ascontiguousarray(a), {axis: n for axis,n in zip(axes, np.ascontiguousarray(a).strides)}
        channels = ''.join(channel_xml.format(
            bits=bits if a.itemsize==2 else 8, lut=dye.removesuffix(' LUT'), inc=c*strides.get('C', 0),
            dye='' if dye.endswith(' LUT') else dye_xml.format(dye)) for c,dye in enumerate(dyes))
        sides = ''.join(axis_xml.format(id=axes_of_lif[axis], n=n, length=(n-1)*.08e-6, inc=strides[axis])
                        for axis,n in zip(axes, a.shape) if axis!='C')
        elements += (f'<Element Name="{name}"><Data><Image><ImageDescription><Channels>{channels}</Channels>'
                     f'<Dimensions>{sides}</Dimensions></ImageDescription></Image></Data><Memory Size="{a.nbytes}" '
                     f'MemoryBlockID="Block_{i}"/></Element>')
        block = f'Block_{i}'
        blocks += struct.pack('<IIBQBI', 0x70, 0, 0x2a, a.nbytes, 0x2a, len(block)) + block.encode('utf-16-le')
        blocks += a.tobytes()
    return part(f'<LMSDataContainerHeader Version="2"><Element Name="day"><Children>{elements}</Children></Element>'
                '</LMSDataContainerHeader>') + blocks


def item(name, value):
    "A value of the metadata, as Nikon writes it: kind, length of the name, name, value"
    key = (name+'\0').encode('utf-16-le') if name else b''
    head = lambda kind: bytes([kind, len(key)//2]) + key
    if isinstance(value, bool): return head(1)+bytes([value])
    if isinstance(value, int): return head(3)+struct.pack('<I', value)
    if isinstance(value, float): return head(6)+struct.pack('<d', value)
    if isinstance(value, str): return head(8)+(value+'\0').encode('utf-16-le')
    inner, places = b'', b''
    start = len(head(11))+12
    for k,v in value.items():
        places += struct.pack('<Q', start+len(inner))
        inner += item(k, v)
    return head(11)+struct.pack('<IQ', len(value), start+len(inner))+inner+places


def nd2_part(name, content, n_name=None):
    name = name.ljust(n_name or len(name), b'\0')
    return struct.pack('<IIQ', ND2_MAGIC, len(name), len(content)) + name + content


def loop(kind, settings, inside=None):
    "A loop of an experiment: 1 over time, 2 over points, 4 through the depth"
    told = dict(eType=kind, uLoopPars=settings)
    return told if inside is None else dict(told, ppNextLevelEx={'i0000000000': inside})


def nd2_of(a, names, point_names, bits=12, packed=False, step=.08):
    "The bytes of an ND2; a: array of points, time points, depths, height, width, channels"
    n_points, n_t, n_z, h, w, n_c = a.shape
    pieces, places = [], {}
    def add(name, content, n_name=None):
        places[name] = sum(map(len, pieces))
        pieces.append(nd2_part(name, content, n_name))
    add(b'ND2 FILE SIGNATURE CHUNK NAME01!', b'Ver3.0'.ljust(64, b'\0'))
    places.clear()
    for i,frame in enumerate(a.reshape(-1, h, w, n_c)):
        data = np.ascontiguousarray(frame).tobytes()
        add(b'ImageDataSeq|%d!'%i, bytes(8)+(zlib.compress(data) if packed else data), 4072)
    add(b'ImageAttributesLV!', item('SLxImageAttributes', dict(
        uiWidth=w, uiWidthBytes=w*n_c*a.itemsize, uiHeight=h, uiComp=n_c, uiBpcInMemory=8*a.itemsize,
        uiBpcSignificant=bits, uiSequenceCount=len(a.reshape(-1, h, w, n_c)), eCompression=0 if packed else 2)))
    planes = {f'a{i}': dict(uiCompCount=1, sDescription=name, uiColor=255, pFluorescentProbe=dict(m_sName=''))
              for i,name in enumerate(names)}
    told = dict(uiCount=n_c, uiCompCount=n_c, sPlaneNew=planes)
    add(b'ImageMetadataSeqLV|0!', item('SLxPictureMetadata', dict(
        dCalibration=step, bCalibrated=True, dAspect=1., sPicturePlanes=told)))
    depth = loop(4, dict(uiCount=n_z, dZStep=1., dZLow=0., dZHigh=1., dZHome=0.)) if n_z>1 else None
    times = loop(1, dict(uiCount=n_t, dPeriod=1., dDuration=1., dStart=0.), depth) if n_t>1 else depth
    points = {f'i{i:010}': dict(dPosX=1., dPosY=1., dPosZ=1., dPFSOffset=0., pPosName=name)
              for i,name in enumerate(point_names)}
    add(b'ImageMetadataLV!', item('SLxExperiment', loop(2, dict(uiCount=n_points, Points=points), times)))
    at, listed = sum(map(len, pieces)), b''.join(name+struct.pack('<QQ', place, 0) for name,place in places.items())
    end = ND2_END+struct.pack('<Q', at)
    return b''.join((*pieces, nd2_part(ND2_LIST, listed+end, 4128), end))


def write_czi(path, values, names=DYES, um=.08, apart=(1000, 0), compression=None):
    "Write a CZI; values: array of scenes, time points, depths, channels, height and width (and three colours)"
    from pylibCZIrw import czi
    with czi.create_czi(str(path), exist_ok=True, compression_options=compression) as d:
        for s, t, k, c in np.ndindex(values.shape[:4]):
            place = tuple(s*side for side in apart)
            d.write(values[s, t, k, c], plane=dict(T=t, Z=k, C=c), scene=s, location=place)
        scale = {} if um is None else dict(scale_x=um*1e-6, scale_y=um*1e-6)
        d.write_metadata('day', channel_names=dict(enumerate(names)), **scale)
    return str(path)


def random_values(*shape, top=4096, seed=0):
    return np.random.default_rng(seed).integers(0, top, shape, dtype=np.uint16)
