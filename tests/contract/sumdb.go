// Checks a folder of tiles with golang.org/x/mod/sumdb, which is what `go` checks the log of Go modules with, and knows
// nothing of Lading. Usage: sumdb FOLDER VKEY, with {inclusion: [{index, hashes}], consistency: [{size, root,
// hashes}]} on standard input, bytes as base64; prints "accepted SIZE", or fails with what does not hold.
package main

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

const height = 8

type given struct {
	Inclusion []struct {
		Index  int64
		Hashes []tlog.Hash
	}
	Consistency []struct {
		Size   int64
		Root   tlog.Hash
		Hashes []tlog.Hash
	}
}

// folder reads tiles. Their paths in C2SP tlog-tiles have no height, and call the data of the Go checksum database entries.
type folder string

func (f folder) Height() int { return height }

func (f folder) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	var found [][]byte
	for _, tile := range tiles {
		path := strings.Replace(tile.Path(), fmt.Sprintf("tile/%d/", height), "tile/", 1)
		data, err := os.ReadFile(filepath.Join(string(f), strings.Replace(path, "/data/", "/entries/", 1)))
		if err != nil {
			return nil, err
		}
		if tile.L >= 0 && len(data) != tile.W*tlog.HashSize {
			return nil, fmt.Errorf("%s has %d bytes", path, len(data))
		}
		found = append(found, data)
	}
	return found, nil
}

func (f folder) SaveTiles([]tlog.Tile, [][]byte) {}

func (f folder) entries(size int64) ([][]byte, error) {
	var found [][]byte
	for begin := int64(0); begin < size; begin += 1 << height {
		width := int(size - begin)
		if width > 1<<height {
			width = 1 << height
		}
		tiles, err := f.ReadTiles([]tlog.Tile{{H: height, L: -1, N: begin >> height, W: width}})
		if err != nil {
			return nil, err
		}
		rest := tiles[0]
		for i := 0; i < width; i++ {
			if len(rest) < 2 || len(rest)-2 < int(binary.BigEndian.Uint16(rest)) {
				return nil, fmt.Errorf("entry %d is cut off", begin+int64(i))
			}
			length := 2 + int(binary.BigEndian.Uint16(rest))
			found, rest = append(found, rest[2:length]), rest[length:]
		}
		if len(rest) > 0 {
			return nil, fmt.Errorf("there is more than the entries of tile %d", begin>>height)
		}
	}
	return found, nil
}

// open checks the signature of the checkpoint, and reads the tree that it is of.
func (f folder) open(vkey string) (tree tlog.Tree, err error) {
	verifier, err := note.NewVerifier(vkey)
	if err != nil {
		return tree, err
	}
	raw, err := os.ReadFile(filepath.Join(string(f), "checkpoint"))
	if err != nil {
		return tree, err
	}
	opened, err := note.Open(raw, note.VerifierList(verifier))
	if err != nil {
		return tree, err
	}
	lines := strings.Split(opened.Text, "\n")
	if len(lines) < 4 || lines[0] != verifier.Name() {
		return tree, fmt.Errorf("the checkpoint is not of %s", verifier.Name())
	}
	if tree.N, err = strconv.ParseInt(lines[1], 10, 64); err != nil {
		return tree, err
	}
	tree.Hash, err = tlog.ParseHash(lines[2])
	return tree, err
}

func (f folder) check(vkey string, proofs given) (size int64, err error) {
	tree, err := f.open(vkey)
	if err != nil {
		return 0, err
	}
	reader := tlog.TileHashReader(tree, f)
	if root, err := tlog.TreeHash(tree.N, reader); err != nil || root != tree.Hash {
		return 0, fmt.Errorf("the tiles do not give the root: %v", err)
	}
	entries, err := f.entries(tree.N)
	if err != nil {
		return 0, err
	}
	for i, entry := range entries {
		proof, err := tlog.ProveRecord(tree.N, int64(i), reader)
		if err != nil {
			return 0, fmt.Errorf("entry %d: %w", i, err)
		}
		if err := tlog.CheckRecord(proof, tree.N, tree.Hash, int64(i), tlog.RecordHash(entry)); err != nil {
			return 0, fmt.Errorf("entry %d: %w", i, err)
		}
	}
	for _, one := range proofs.Inclusion {
		if one.Index >= tree.N {
			return 0, fmt.Errorf("there is no entry %d", one.Index)
		}
		hash := tlog.RecordHash(entries[one.Index])
		if err := tlog.CheckRecord(one.Hashes, tree.N, tree.Hash, one.Index, hash); err != nil {
			return 0, fmt.Errorf("inclusion of %d: %w", one.Index, err)
		}
	}
	for _, one := range proofs.Consistency {
		if err := tlog.CheckTree(one.Hashes, tree.N, tree.Hash, one.Size, one.Root); err != nil {
			return 0, fmt.Errorf("consistency with %d: %w", one.Size, err)
		}
		mine, err := tlog.ProveTree(tree.N, one.Size, reader)
		if err != nil {
			return 0, err
		}
		if err := tlog.CheckTree(mine, tree.N, tree.Hash, one.Size, one.Root); err != nil {
			return 0, fmt.Errorf("consistency with %d by the tiles: %w", one.Size, err)
		}
	}
	return tree.N, nil
}

func main() {
	var proofs given
	err := json.NewDecoder(os.Stdin).Decode(&proofs)
	if err == nil {
		var size int64
		if size, err = folder(os.Args[1]).check(os.Args[2], proofs); err == nil {
			fmt.Println("accepted", size)
			return
		}
	}
	fmt.Fprintln(os.Stderr, "refused:", err)
	os.Exit(1)
}
