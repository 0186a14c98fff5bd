// Arrays inside JSON, as edgekit.wire writes them: {"name": {"dtype": "float32", "shape": [1, 3], "data": base64}}.
#pragma once

#include <executorch/extension/tensor/tensor_ptr.h>
#include <executorch/runtime/core/evalue.h>

#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace edgekit {

using executorch::aten::ScalarType;
using executorch::extension::TensorPtr;
using executorch::runtime::EValue;

const char kAlphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

struct DType {
  const char* name;
  ScalarType type;
  size_t bytes;
};
const DType kDTypes[] = {{"float32", ScalarType::Float, 4}, {"float16", ScalarType::Half, 2},
                         {"float64", ScalarType::Double, 8}, {"int64", ScalarType::Long, 8},
                         {"int32", ScalarType::Int, 4}, {"int16", ScalarType::Short, 2},
                         {"int8", ScalarType::Char, 1}, {"uint8", ScalarType::Byte, 1},
                         {"bool", ScalarType::Bool, 1}};

inline const DType* dtype_of(ScalarType type) {
  for (const DType& each : kDTypes)
    if (each.type == type) return &each;
  return nullptr;
}

// Inputs of one call: the tensors point into the bytes, which must outlive them.
struct Feeds {
  std::vector<std::string> names;
  std::vector<std::vector<uint8_t>> bytes;
  std::vector<TensorPtr> tensors;

  size_t index(const std::string& name) const {
    for (size_t i = 0; i < names.size(); i++)
      if (names[i] == name) return i;
    throw std::runtime_error("there is no input " + name);
  }
};

inline std::string encode(const uint8_t* data, size_t size) {
  std::string text;
  text.reserve((size + 2) / 3 * 4);
  for (size_t i = 0; i < size; i += 3) {
    uint32_t word = data[i] << 16 | (i + 1 < size ? data[i + 1] << 8 : 0) | (i + 2 < size ? data[i + 2] : 0);
    text += kAlphabet[word >> 18];
    text += kAlphabet[word >> 12 & 63];
    text += i + 1 < size ? kAlphabet[word >> 6 & 63] : '=';
    text += i + 2 < size ? kAlphabet[word & 63] : '=';
  }
  return text;
}

inline std::vector<uint8_t> decode(const std::string& text) {
  static int8_t values[256];
  if (!values['B']) {
    for (int8_t& value : values) value = -1;
    for (int8_t i = 0; i < 64; i++) values[static_cast<uint8_t>(kAlphabet[i])] = i;
  }
  std::vector<uint8_t> data;
  uint32_t word = 0;
  int bits = 0;
  for (char letter : text) {
    if (letter == '=') break;
    int8_t value = values[static_cast<uint8_t>(letter)];
    if (value < 0) throw std::runtime_error("the inputs are not base64");
    word = word << 6 | static_cast<uint32_t>(value);
    if ((bits += 6) >= 8) data.push_back(static_cast<uint8_t>(word >> (bits -= 8)));
  }
  return data;
}

// The text between `key` and `end`, from `at` on; moves `at` behind it. A quote inside a JSON string is escaped, so a
// tensor's name cannot hold a key.
inline std::string field(const std::string& line, const std::string& key, char end, size_t& at) {
  size_t start = line.find(key, at), stop = start == line.npos ? start : line.find(end, start += key.size());
  if (stop == line.npos) throw std::runtime_error("the inputs lack " + key);
  at = stop;
  return line.substr(start, stop - start);
}

inline Feeds parse(const std::string& line, size_t at) {
  Feeds feeds;
  for (size_t mark; (mark = line.find("\": {\"dtype\": \"", at)) != line.npos;) {
    size_t quote = line.rfind('"', mark - 1);
    feeds.names.push_back(line.substr(quote + 1, mark - quote - 1));
    std::string dtype = field(line, "\"dtype\": \"", '"', at);
    std::stringstream sizes(field(line, "\"shape\": [", ']', at));
    feeds.bytes.push_back(decode(field(line, "\"data\": \"", '"', at)));
    std::vector<executorch::aten::SizesType> shape;
    size_t count = 1;
    for (std::string size; std::getline(sizes, size, ',');) shape.push_back(std::stoi(size)), count *= shape.back();
    const DType* known = nullptr;
    for (const DType& each : kDTypes) known = dtype == each.name ? &each : known;
    if (!known || feeds.bytes.back().size() != count * known->bytes) throw std::runtime_error("an input is no " + dtype);
    feeds.tensors.push_back(executorch::extension::make_tensor_ptr(shape, feeds.bytes.back().data(), known->type));
  }
  return feeds;
}

inline std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (char letter : text) {
    if (letter == '"' || letter == '\\') out += '\\';
    if (static_cast<uint8_t>(letter) >= ' ') out += letter;
  }
  return out + "\"";
}

inline std::string shown(const std::vector<EValue>& values, const std::vector<std::string>& names) {
  if (values.size() != names.size()) throw std::runtime_error("the model has another number of outputs than its manifest");
  std::stringstream out;
  for (size_t i = 0; i < values.size(); i++) {
    auto tensor = values[i].toTensor();
    const DType* known = dtype_of(tensor.scalar_type());
    if (!known) throw std::runtime_error("output " + names[i] + " has a dtype that the wire does not carry");
    out << (i ? ", " : "") << quoted(names[i]) << ": {\"dtype\": \"" << known->name << "\", \"shape\": [";
    for (ssize_t axis = 0; axis < tensor.dim(); axis++) out << (axis ? ", " : "") << tensor.size(axis);
    out << "], \"data\": \"" << encode(static_cast<const uint8_t*>(tensor.const_data_ptr()), tensor.nbytes()) << "\"}";
  }
  return out.str();
}

}  // namespace edgekit
