// Texts of a language model, token by token: edgekit.decoding.Decoder and token_times, step for step.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "wire.h"

namespace edgekit {

inline double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// One text. `sample` names the inputs of a step and gives the caches their shapes: keys [1, heads, width, context],
// values [1, heads, context, width]. The text begins with empty caches.
class Decoder {
 public:
  using Run = std::function<std::vector<EValue>(const Feeds&)>;

  Decoder(Run run, const Feeds& sample, const std::vector<std::string>& outputs, std::vector<int64_t> chunks)
      : run_(std::move(run)), outputs_(outputs), chunks_(std::move(chunks)) {
    for (size_t i = 0; i < sample.names.size(); i++) {
      feeds_.names.push_back(sample.names[i]);
      feeds_.bytes.emplace_back(sample.bytes[i].size(), 0);
      const auto sizes = sample.tensors[i]->sizes();
      const std::vector<executorch::aten::SizesType> shape(sizes.begin(), sizes.end());
      feeds_.tensors.push_back(
          executorch::extension::make_tensor_ptr(shape, feeds_.bytes[i].data(), sample.tensors[i]->scalar_type()));
    }
    tokens_ = feeds_.index("tokens");
    place_ = feeds_.index("position");
  }

  // The likeliest token after these. All but the last go in chunks, padded at the end; the last goes alone.
  int64_t feed(const std::vector<int64_t>& ids) {
    for (size_t at = 0; at + 1 < ids.size();) {
      const int64_t left = ids.size() - 1 - at;
      const auto fits = std::find_if(chunks_.begin(), chunks_.end(), [&](int64_t size) { return size >= left; });
      const int64_t size = fits == chunks_.end() ? chunks_.back() : *fits, taken = std::min(left, size);
      step({ids.begin() + at, ids.begin() + at + taken}, size);
      at += taken;
    }
    return step({ids.back()}, 1);
  }

  int64_t position() const { return position_; }

 private:
  int64_t step(std::vector<int64_t> ids, int64_t size) {
    const int64_t count = ids.size();
    ids.resize(size, 0);
    set(tokens_, ids, {1, static_cast<executorch::aten::SizesType>(size)});
    set(place_, {position_}, {1});
    const std::vector<EValue> results = run_(feeds_);
    int64_t likeliest = -1;
    for (size_t i = 0; i < outputs_.size(); i++) {
      if (outputs_[i] == "logits") likeliest = argmax(results[i].toTensor());
      if (outputs_[i].rfind("new_", 0) == 0) keep(outputs_[i].substr(4), results[i].toTensor(), count, size);
    }
    if (likeliest < 0) throw std::runtime_error("the model gives no logits");
    position_ += count;
    return likeliest;
  }

  void set(size_t input, const std::vector<int64_t>& values, std::vector<executorch::aten::SizesType> shape) {
    feeds_.bytes[input].resize(values.size() * sizeof(int64_t));
    std::memcpy(feeds_.bytes[input].data(), values.data(), feeds_.bytes[input].size());
    feeds_.tensors[input] =
        executorch::extension::make_tensor_ptr(shape, feeds_.bytes[input].data(), ScalarType::Long);
  }

  // Copy the new entries of one cache, `count` of `size` places, to where the text has come to.
  void keep(const std::string& name, const executorch::aten::Tensor& fresh, int64_t count, int64_t size) {
    const size_t input = feeds_.index(name);
    const TensorPtr& cache = feeds_.tensors[input];
    const bool keys = name.rfind("key_", 0) == 0;
    const int64_t context = cache->size(keys ? 3 : 2), item = fresh.element_size();
    const int64_t row = keys ? item : item * fresh.size(3);  // of one place
    const int64_t rows = fresh.nbytes() / (row * size);
    const auto* from = static_cast<const uint8_t*>(fresh.const_data_ptr());
    uint8_t* to = feeds_.bytes[input].data();
    for (int64_t i = 0; i < rows; i++)
      std::memcpy(to + (i * context + position_) * row, from + i * size * row, count * row);
  }

  static int64_t argmax(const executorch::aten::Tensor& logits) {
    if (logits.scalar_type() != ScalarType::Float) throw std::runtime_error("the logits are not float32");
    const auto* values = static_cast<const float*>(logits.const_data_ptr());
    return std::max_element(values, values + logits.numel()) - values;
  }

  Run run_;
  Feeds feeds_;
  std::vector<std::string> outputs_;
  std::vector<int64_t> chunks_;
  size_t tokens_, place_;
  int64_t position_ = 0;
};

}  // namespace edgekit
