//! Reads frames of blocks as docs/format.md describes them: `narrows-decoder FRAME OUT [MODEL]`.
//! OUT gets, per block: n and C (u32), 1 or 0 for timestamps, n times (i64), then n * C float bits, row by row.

use std::{env, fs, process};

type Fault = String;

fn main() {
    let arguments: Vec<String> = env::args().collect();
    if let Err(fault) = run(&arguments) {
        eprintln!("{fault}");
        process::exit(1);
    }
}

fn run(arguments: &[String]) -> Result<(), Fault> {
    let read = |path: &String| fs::read(path).map_err(|error| format!("{path}: {error}"));
    let frame = read(arguments.get(1).ok_or("give FRAME OUT [MODEL]")?)?;
    let model = match arguments.get(3) {
        Some(path) => Some(Model::parse(&read(path)?)?),
        None => None,
    };
    let mut out = Vec::new();
    for block in unpack_frame(&frame)? {
        decode(block, model.as_ref(), &mut out)?;
    }
    fs::write(&arguments[2], out).map_err(|error| error.to_string())
}

fn crc32c(data: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for &byte in data {
        crc ^= byte as u32;
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 == 1 { 0x82F6_3B78 } else { 0 };
        }
    }
    !crc
}

fn unzigzag(v: u64) -> i64 {
    (v >> 1) as i64 ^ -((v & 1) as i64)
}

fn zigzagged_check(h: u32, k: i64) -> u32 {
    let h = (h ^ k as u32).wrapping_mul(2654435761);
    h ^ h >> 15
}

fn clip(v: i64) -> i64 {
    v.clamp(-(1 << 31), (1 << 31) - 1)
}

struct Reader<'a> {
    data: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, size: usize) -> Result<&'a [u8], Fault> {
        let end = self.at.checked_add(size).filter(|&end| end <= self.data.len()).ok_or("cut")?;
        let piece = &self.data[self.at..end];
        self.at = end;
        Ok(piece)
    }
    fn byte(&mut self) -> Result<u8, Fault> {
        Ok(self.take(1)?[0])
    }
    fn varint(&mut self) -> Result<u64, Fault> {
        let mut value = 0u64;
        for shift in (0..70).step_by(7) {
            let byte = self.byte()?;
            value |= if shift < 64 { ((byte & 127) as u64) << shift } else { 0 };
            if byte < 128 {
                return Ok(value);
            }
        }
        Err("a varint that never ends".into())
    }
    fn count(&mut self, most: usize) -> Result<usize, Fault> {
        let value = self.varint()?;
        if value > most as u64 { Err(format!("a count of {value}")) } else { Ok(value as usize) }
    }
    fn svarint(&mut self) -> Result<i64, Fault> {
        Ok(unzigzag(self.varint()?))
    }
    fn f64(&mut self) -> Result<f64, Fault> {
        Ok(f64::from_le_bytes(self.take(8)?.try_into().unwrap()))
    }
    fn u16(&mut self) -> Result<i64, Fault> {
        Ok(u16::from_le_bytes(self.take(2)?.try_into().unwrap()) as i64)
    }
}

fn unpack_frame(data: &[u8]) -> Result<Vec<&[u8]>, Fault> {
    if data.len() < 8 || &data[..2] != b"NB" || data[2] != 1 {
        return Err("not a frame of version 1".into());
    }
    let (body, tail) = data.split_at(data.len() - 4);
    if crc32c(body) != u32::from_le_bytes(tail.try_into().unwrap()) {
        return Err("the frame's CRC-32C fails".into());
    }
    let mut reader = Reader { data: body, at: 3 };
    let count = reader.count(1 << 20)?;
    let lengths: Vec<usize> = (0..count).map(|_| reader.count(body.len())).collect::<Result<_, _>>()?;
    let blocks = lengths.into_iter().map(|length| reader.take(length)).collect::<Result<Vec<_>, _>>()?;
    if reader.at == body.len() { Ok(blocks) } else { Err("bytes left over".into()) }
}

/// Frequencies and where each symbol begins.
struct Table {
    frequency: Vec<i64>,
    start: Vec<i64>,
}

impl Table {
    fn new(frequency: Vec<i64>) -> Table {
        let mut start = vec![0];
        for f in &frequency {
            start.push(start.last().unwrap() + f);
        }
        Table { frequency, start }
    }
    fn normalised(weights: &[i64]) -> Table {
        let total: i128 = weights.iter().map(|&w| w as i128).sum();
        let mut f: Vec<i64> = weights.iter().map(|&w| ((w as i128) * 32768 / total) as i64).collect();
        let last = f.len() - 1;
        f[last] = f[last].max(1);
        let largest = (0..f.len()).rev().max_by_key(|&i| f[i]).unwrap();
        f[largest] += 32768 - f.iter().sum::<i64>();
        Table::new(f)
    }
}

const THETA: [i64; 16] = [
    1637, 2314, 3269, 4611, 6489, 9090, 12621, 17252, 22989, 29540, 36323, 42688, 48181, 52635, 56091, 58694,
];

fn format_tables() -> Vec<Table> {
    let mut tables = Vec::new();
    for theta in THETA {
        let mut w = vec![1i64 << 30];
        for j in 1..128 {
            w.push(w[j - 1] * theta >> 16);
        }
        let mut weights: Vec<i64> = w[1..].iter().rev().copied().collect();
        weights.extend(&w);
        weights.push(1 << 15);
        tables.push(Table::normalised(&weights));
    }
    tables.push(Table::normalised(&[16, 8, 24, 8, 4, 1, 4, 0]));
    tables.push(Table::normalised(&[
        24, 16, 12, 10, 8, 7, 6, 5, 4, 3, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 12,
    ]));
    tables.push(Table::normalised(&[1; 64]));
    tables.push(Table::normalised(&[120, 7, 1]));
    tables.push(Table::normalised(&[511, 0, 1]));
    tables
}

struct Channel {
    code: i64,
    lattice: Option<(f64, f64)>,
    median: i64,
    bias: i64,
    weights: Vec<i64>,
    first: (usize, u32),
    options: usize,
    gaps: usize,
    runs: (usize, u32),
    scale_base: i64,
    entries: Vec<(usize, u32, usize)>,
    place: Option<usize>,
}

struct Model {
    id: [u8; 3],
    step_ms: i64,
    tables: Vec<Table>,
    scales: usize,
    same: usize,
    lags: usize,
    active: Vec<usize>,
    lag_weights: Vec<i64>,
    now_weights: Vec<Vec<i64>>,
    channels: Vec<Channel>,
}

impl Model {
    fn parse(data: &[u8]) -> Result<Model, Fault> {
        if data.len() < 4 || &data[..2] != b"NC" || data[2] != 1 {
            return Err("not a codec model of version 1".into());
        }
        let payload = miniz_oxide::inflate::decompress_to_vec_zlib(&data[3..]).map_err(|error| error.to_string())?;
        let digest = <sha2::Sha256 as sha2::Digest>::digest(&payload);
        let mut r = Reader { data: &payload, at: 0 };
        let c_all = r.count(1 << 12)?;
        let step_ms = r.svarint()?;
        r.f64()?;
        let mut tables = format_tables();
        for _ in 0..r.count(1 << 16)? {
            let (low, count) = (r.count(255)?, r.count(256)?);
            let mut f = vec![0i64; 256.max(low + count)];
            for place in f.iter_mut().skip(low).take(count) {
                *place = r.count(32768)? as i64;
            }
            tables.push(Table::new(f));
        }
        let known = tables.len() - 1;
        let (scales, same, lags) = (r.count(known)?, r.count(known - 1)?, r.count(16)?);
        let a_all = r.count(c_all)?;
        let active = (0..a_all).map(|_| r.count(c_all - 1)).collect::<Result<Vec<_>, _>>()?;
        let lag_weights = (0..a_all * lags * a_all).map(|_| r.svarint()).collect::<Result<Vec<_>, _>>()?;
        let mut now_weights = Vec::new();
        for a in 0..a_all {
            now_weights.push((0..a).map(|_| r.svarint()).collect::<Result<Vec<_>, _>>()?);
        }
        let mut channels = Vec::new();
        for c in 0..c_all {
            r.f64()?;
            let code = r.u16()?;
            let lattice = if r.byte()? == 1 { Some((r.f64()?, r.f64()?)) } else { None };
            let (median, bias) = (r.svarint()?, r.svarint()?);
            let weights = (0..c).map(|_| r.svarint()).collect::<Result<Vec<_>, _>>()?;
            let first = (r.count(known)?, r.count(32)? as u32);
            let (options, gaps) = (r.count(known)?, r.count(known)?);
            let runs = (r.count(known)?, r.count(32)? as u32);
            let scale_base = r.count(63)? as i64;
            let mut entries = Vec::new();
            for _ in 0..r.count(64)? {
                entries.push((r.count(5)?, r.count(32)? as u32, r.count(known)?));
            }
            let place = active.iter().position(|&e| e == c);
            channels.push(Channel {
                code, lattice, median, bias, weights, first, options, gaps, runs, scale_base, entries, place,
            });
        }
        let id = [digest[0], digest[1], digest[2]];
        Ok(Model { id, step_ms, tables, scales, same, lags, active, lag_weights, now_weights, channels })
    }

    fn blank(codes: Vec<i64>) -> Model {
        let mut tables = format_tables();
        tables.push(Table::normalised(&[1, 15]));
        tables.push(Table::normalised(&[1, 1]));
        let channels = codes.into_iter().enumerate().map(|(c, code)| Channel {
            code, lattice: None, median: 0, bias: 0, weights: vec![0; c], first: (14, 8), options: 16, gaps: 17,
            runs: (10, 2), scale_base: 0, entries: vec![], place: None,
        });
        Model {
            id: [0; 3], step_ms: 0, tables, scales: 18, same: 21, lags: 1, active: vec![], lag_weights: vec![],
            now_weights: vec![], channels: channels.collect(),
        }
    }
}

fn tighten(code: i64, h: u32) -> i64 {
    if code < 128 {
        (code - 4 * h as i64).max(0)
    } else if code >> 7 > h as i64 {
        code - ((h as i64) << 7)
    } else {
        0
    }
}

fn value_of(k: i64, code: i64) -> f32 {
    if code < 128 {
        let o = clip(k * (((4 + code % 4) << (code / 4)) / 4)) as i32;
        return f32::from_bits((o ^ (o >> 31 & 0x7FFF_FFFF)) as u32);
    }
    (k as f64 * (128 + (code & 127)) as f64 * 2f64.powi((code >> 7) as i32 - 263)) as f32
}

fn take_timestamps(r: &mut Reader, n: usize) -> Result<Vec<i64>, Fault> {
    let mut ts = vec![0i64; n];
    ts[0] = r.svarint()?;
    let form = r.byte()? as usize;
    let step = r.svarint()?;
    if form < 2 {
        let mut deltas = vec![step; n];
        if form == 1 {
            let mut row = 0;
            for _ in 0..r.count(n)? {
                row += r.count(n)? + 1;
                let extra = r.svarint()?;
                let delta = deltas.get_mut(row).ok_or("a row past the end")?;
                *delta = delta.wrapping_add(extra);
            }
        }
        for t in 1..n {
            ts[t] = ts[t - 1].wrapping_add(deltas[t]);
        }
        return Ok(ts);
    }
    let (k, order) = ((form - 2) / 3, (form - 2) % 3);
    let size = r.count(16 * n + 16)?;
    let bits = r.take(size)?;
    let mut at = 0;
    let mut bit = || -> Result<u64, Fault> {
        let byte = *bits.get(at / 8).ok_or("timestamps end early")?;
        at += 1;
        Ok((byte >> (7 - (at - 1) % 8) & 1) as u64)
    };
    for t in 1..n {
        let mut ones = 0;
        while ones < 40 && bit()? == 1 {
            ones += 1;
        }
        let (mut value, low) = if ones == 40 { (0, 64) } else { (ones, k) };
        for _ in 0..low {
            value = value << 1 | bit()?;
        }
        let before = match order {
            0 => ts[0].wrapping_add((t as i64).wrapping_mul(step)),
            _ if order == 1 || t == 1 => ts[t - 1].wrapping_add(step),
            _ => ts[t - 1].wrapping_mul(2).wrapping_sub(ts[t - 2]),
        };
        ts[t] = before.wrapping_add(unzigzag(value));
    }
    Ok(ts)
}

/// (position, length, bits) of runs of exceptions.
fn take_exceptions(r: &mut Reader, most: usize) -> Result<Vec<(usize, usize, u32)>, Fault> {
    let (mut runs, mut end) = (Vec::new(), 0);
    for _ in 0..r.count(most)? {
        let start = end + r.count(most)?;
        let coded = r.count(2 * most + 1)?;
        let bits = if coded & 1 == 1 { 0x7FC0_0000 } else { u32::from_le_bytes(r.take(4)?.try_into().unwrap()) };
        end = start + coded / 2;
        if end > most {
            return Err("exceptions past the end".into());
        }
        runs.push((start, coded / 2, bits));
    }
    Ok(runs)
}

struct Coder<'a> {
    x: i64,
    data: &'a [u8],
    at: usize,
}

impl Coder<'_> {
    fn refill(&mut self) -> Result<(), Fault> {
        while self.x < 1 << 23 {
            self.x = self.x << 8 | *self.data.get(self.at).ok_or("the body ends early")? as i64;
            self.at += 1;
        }
        Ok(())
    }
    fn symbol(&mut self, table: &Table) -> Result<usize, Fault> {
        let slot = self.x & 32767;
        let i = table.start.partition_point(|&s| s <= slot) - 1;
        self.x = table.frequency[i] * (self.x >> 15) + slot - table.start[i];
        self.refill()?;
        Ok(i)
    }
    fn raw(&mut self, bits: u32) -> Result<i64, Fault> {
        let (mut value, mut done) = (0, 0);
        while done < bits {
            let p = (bits - done).min(15);
            let slot = self.x & 32767;
            value |= slot >> (15 - p) << done;
            self.x = (self.x >> 15 << (15 - p)) + (slot & ((1 << (15 - p)) - 1));
            self.refill()?;
            done += p;
        }
        Ok(value)
    }
    fn value(&mut self, table: &Table, shift: u32) -> Result<i64, Fault> {
        let i = self.symbol(table)?;
        if i < 255 {
            return Ok(((i as i64 - 127) << shift) + self.raw(shift)?);
        }
        let b = self.raw(6)?.min(40) as u32;
        Ok(if b == 0 { 0 } else { unzigzag((1u64 << (b - 1)) + self.raw(b - 1)? as u64) })
    }
}

fn take_learned(m: &Model, head: &[u8], body: &[u8], h: u32, n: usize) -> Result<(Vec<Vec<i64>>, Vec<usize>), Fault> {
    let c_all = m.channels.len();
    let x = u32::from_le_bytes(body.get(..4).ok_or("no body")?.try_into().unwrap()) as i64;
    let mut coder = Coder { x, data: body, at: 4 };
    let stretches = if n < 2 { 0 } else { 1.max((n - 1 + 32) / 64) };
    let mut k = vec![vec![0i64; n]; c_all];
    let mut r = vec![vec![0i64; n]; c_all];
    let mut predictor = vec![vec![0usize; stretches]; c_all];
    let mut quantiser = vec![0usize; c_all];
    let base = |k: i64, e: usize, quantiser: &[usize]| match (quantiser[e], m.channels[e].lattice) {
        (0, Some(_)) => k,
        (0, None) => k >> h,
        _ => m.channels[e].median,
    };
    for c in 0..c_all {
        let own = &m.channels[c];
        let q = coder.symbol(&m.tables[if own.lattice.is_some() { 19 } else { 20 }])?;
        quantiser[c] = q;
        let shift = if own.lattice.is_some() { 0 } else { h };
        let extra = if q == 0 { shift } else { 0 };
        let (first, options, gaps, runs, scales, scale_base) = if q == 0 {
            (own.first, own.options, own.gaps, own.runs, m.scales, own.scale_base)
        } else {
            ((14, 8), 16, 17, (10, 2), 18, 0)
        };
        let value = coder.value(&m.tables[first.0], first.1 + extra)?;
        let mut guess = 0;
        if q == 0 {
            let mut total = own.bias + 32768;
            for e in 0..c {
                total = total.wrapping_add(own.weights[e].wrapping_mul(base(k[e][0], e, &quantiser)));
            }
            guess = clip(total >> 16 << shift);
        }
        k[c][0] = clip(guess + value);
        let (mut low, mut option, mut scale) = (1, 0, 0);
        for i in 0..stretches {
            let high = if i == stretches - 1 { n } else { 1 + (i + 1) * 64 };
            if i == 0 || coder.symbol(&m.tables[m.same + (option != 0) as usize])? == 0 {
                option = coder.symbol(&m.tables[options])?;
                if (2..8).contains(&option) {
                    scale = (coder.symbol(&m.tables[scales])? as i64 + scale_base) & 63;
                }
            }
            if option == 1 {
                let mut t = low;
                loop {
                    let g = coder.symbol(&m.tables[gaps])? as u32;
                    if g == 23 {
                        break;
                    }
                    t += (coder.raw(g)? + (1 << g) - 1) as usize;
                    if t >= high {
                        return Err("a run past its stretch".into());
                    }
                    r[c][t] = coder.value(&m.tables[runs.0], runs.1 + extra)?;
                    t += 1;
                }
            } else if option >= 2 {
                let (p, s, table) = if option >= 8 {
                    let entry = own.entries.get(option - 8).ok_or("no such entry")?;
                    (entry.0, entry.1 + extra, entry.2)
                } else if scale < 16 {
                    (option - 2, 0, scale as usize)
                } else {
                    (option - 2, ((scale - 14) >> 1) as u32, 14 + (scale & 1) as usize)
                };
                predictor[c][i] = p;
                for t in low..high {
                    r[c][t] = coder.value(&m.tables[table], s)?;
                }
            }
            low = high;
        }
    }
    let a_all = m.active.len();
    let mut deltas = vec![vec![0i64; a_all]; n];
    let mut average: Vec<i64> = k.iter().map(|row| row[0] << 8).collect();
    for t in 1..n {
        let rate = if t < 2 { 1 } else if t < 6 { 2 } else { 3 };
        for c in 0..c_all {
            let own = &m.channels[c];
            let shift = if own.lattice.is_some() { 0 } else { h };
            let before = k[c][t - 1];
            let change = if t > 1 { before - k[c][t - 2] } else { 0 };
            let guess = match predictor[c][((t - 1) / 64).min(stretches - 1)] {
                0 => before,
                1 => before + change,
                2 => before - ((change + 1) >> 1),
                3 => own.median << shift,
                4 => (average[c] + 128) >> 8,
                _ => {
                    let a = own.place.ok_or("a regression of a channel that is not active")?;
                    let mut w = 32768i64;
                    for lag in 1..=m.lags.min(t) {
                        for e in 0..a_all {
                            let weight = m.lag_weights[(a * m.lags + m.lags - lag) * a_all + e];
                            w = w.wrapping_add(weight.wrapping_mul(deltas[t - lag][e]));
                        }
                    }
                    for e in 0..a {
                        w = w.wrapping_add(m.now_weights[a][e].wrapping_mul(deltas[t][e]));
                    }
                    before + (w >> 16 << shift)
                }
            };
            k[c][t] = clip(clip(guess) + r[c][t]);
            average[c] += ((k[c][t] << 8) - average[c]) >> rate;
            if let (Some(a), 0) = (own.place, quantiser[c]) {
                deltas[t][a] = clip((k[c][t] >> shift) - (before >> shift));
            }
        }
    }
    let check = k.iter().flatten().fold(crc32c(head), |hash, &k| zigzagged_check(hash, k));
    if coder.at != body.len() || coder.x != (1 << 23) + (check >> 9) as i64 {
        return Err("the block's check fails".into());
    }
    Ok((k, quantiser))
}

/// A pcodec file with the lead that blocks leave out.
fn whole(data: &[u8], has_lead: bool) -> Vec<u8> {
    let lead: &[u8] = if has_lead { b"" } else { b"pco!\x03" };
    [lead, data].concat()
}

fn take_pcodec(r: &mut Reader, c_all: usize, n: usize) -> Result<(Vec<Vec<i64>>, Vec<usize>), Fault> {
    let form = r.byte()?;
    let quantiser = if form & 2 == 2 {
        r.take(c_all)?.iter().map(|&q| q as usize).collect()
    } else {
        vec![0; c_all]
    };
    let rest = &whole(&r.data[r.at..], form & 8 == 8);
    let fault = |error: pco::errors::PcoError| error.to_string();
    let flat: Vec<i64> = if form & 1 == 1 {
        pco::standalone::simple_decompress::<i64>(rest).map_err(fault)?
    } else {
        pco::standalone::simple_decompress::<i32>(rest).map_err(fault)?.into_iter().map(i64::from).collect()
    };
    if flat.len() != c_all * n {
        return Err("pcodec holds another count".into());
    }
    if form & 4 == 4 {
        return Ok((flat.chunks(n).map(<[i64]>::to_vec).collect(), quantiser));
    }
    let mut k = vec![vec![0i64; n]; c_all];
    for c in 0..c_all {
        k[c][0] = flat[c];
        for t in 1..n {
            k[c][t] = k[c][t - 1] + flat[c_all + c * (n - 1) + t - 1];
        }
    }
    Ok((k, quantiser))
}

fn take_floats(r: &mut Reader, count: usize) -> Result<Vec<u32>, Fault> {
    let form = r.byte()?;
    if form & 1 == 1 {
        let file = whole(&r.data[r.at..], form == 3);
        let floats = pco::standalone::simple_decompress::<f32>(&file).map_err(|error| error.to_string())?;
        return Ok(floats.into_iter().map(f32::to_bits).collect());
    }
    Ok(r.take(4 * count)?.chunks(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect())
}

fn decode(block: &[u8], given: Option<&Model>, out: &mut Vec<u8>) -> Result<(), Fault> {
    let flags = *block.first().ok_or("an empty block")?;
    let kind = flags & 3;
    if flags >= 128 || kind == 3 {
        return Err("not a bounded block of version 1".into());
    }
    let mut data = block;
    if kind != 2 {
        let end = block.len().checked_sub(3).ok_or("cut")?;
        if crc32c(&block[..end]).to_le_bytes()[..3] != block[end..] {
            return Err("the block's check fails".into());
        }
        data = &block[..end];
    }
    let mut r = Reader { data, at: 1 };
    let blank;
    let model = if kind == 0 {
        let channels = r.count(1 << 12)?;
        blank = Model::blank(vec![0; channels]);
        &blank
    } else if flags & 4 == 4 {
        let id = r.take(3)?;
        given.filter(|model| model.id == *id).ok_or("the block's model is not at hand")?
    } else {
        let channels = r.count(1 << 12)?;
        blank = Model::blank((0..channels).map(|_| r.u16()).collect::<Result<Vec<_>, _>>()?);
        &blank
    };
    let (c_all, n) = (model.channels.len(), r.count(1 << 16)?);
    if n == 0 || c_all == 0 || n * c_all > 1 << 22 {
        return Err("a shape that is not allowed".into());
    }
    let h = if flags & 32 == 32 { r.byte()? as u32 } else { 0 };
    let ts = match (flags & 8 == 8, flags & 64 == 64) {
        (false, _) => None,
        (true, true) => {
            let first = r.svarint()?;
            Some((0..n).map(|t| first.wrapping_add(t as i64 * model.step_ms)).collect())
        }
        (true, false) => Some(take_timestamps(&mut r, n)?),
    };
    let mut bits = vec![0u32; c_all * n];
    if kind == 0 {
        bits = take_floats(&mut r, c_all * n)?;
    } else {
        let exceptions = if flags & 16 == 16 { take_exceptions(&mut r, c_all * n)? } else { vec![] };
        let (k, quantiser) = if kind == 2 {
            take_learned(model, &data[..r.at], &data[r.at..], h, n)?
        } else {
            take_pcodec(&mut r, c_all, n)?
        };
        for c in 0..c_all {
            let own = &model.channels[c];
            for t in 0..n {
                let value = match (quantiser[c], own.lattice) {
                    (0, Some((pitch, offset))) => (k[c][t] as f64 * pitch + offset) as f32,
                    (2, _) => value_of(k[c][t], 0),
                    _ => value_of(k[c][t], tighten(own.code, h)),
                };
                bits[c * n + t] = value.to_bits();
            }
        }
        for (start, length, pattern) in exceptions {
            bits[start..start + length].fill(pattern);
        }
    }
    out.extend((n as u32).to_le_bytes());
    out.extend((c_all as u32).to_le_bytes());
    out.push(ts.is_some() as u8);
    let times: Vec<i64> = ts.unwrap_or_default();
    out.extend(times.iter().flat_map(|t| t.to_le_bytes()));
    for t in 0..n {
        out.extend((0..c_all).flat_map(|c| bits[c * n + t].to_le_bytes()));
    }
    Ok(())
}
