// The native side of edgekit.worker's protocol: one .pte file, one JSON document a line on standard input and output.
//
//   worker MODEL.pte THREADS FEEDS.json OUTPUT...
//
// FEEDS.json holds the inputs of timed calls as edgekit.wire writes them, in the model's order; OUTPUT... name its
// outputs. It needs ExecuTorch's shared libraries and nothing else: no Python, no torch.
#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor_ptr.h>
#include <executorch/runtime/backend/interface.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

using executorch::aten::ScalarType;
using executorch::extension::Module;
using executorch::extension::TensorPtr;
using executorch::runtime::Error;
using executorch::runtime::EValue;

namespace executorch::extension::threadpool {  // libexecutorch_threadpool.so has it, the wheel's headers do not
class ThreadPool {
 public:
  bool _unsafe_reset_threadpool(uint32_t threads);
};
ThreadPool* get_threadpool();
}  // namespace executorch::extension::threadpool

namespace {

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

// Inputs of one call: the tensors point into the bytes, which must outlive them.
struct Feeds {
  std::vector<std::vector<uint8_t>> bytes;
  std::vector<TensorPtr> tensors;
};

std::string encode(const uint8_t* data, size_t size) {
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

std::vector<uint8_t> decode(const std::string& text) {
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
std::string field(const std::string& line, const std::string& key, char end, size_t& at) {
  size_t start = line.find(key, at), stop = start == line.npos ? start : line.find(end, start += key.size());
  if (stop == line.npos) throw std::runtime_error("the inputs lack " + key);
  at = stop;
  return line.substr(start, stop - start);
}

Feeds parse(const std::string& line) {
  Feeds feeds;
  for (size_t at = 0; line.find("\"dtype\": \"", at) != line.npos;) {
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

std::vector<EValue> call(Module& model, const Feeds& feeds) {
  std::vector<EValue> inputs(feeds.tensors.begin(), feeds.tensors.end());
  auto outputs = model.forward(inputs);
  if (!outputs.ok()) throw std::runtime_error("executorch could not run the model: error " +
                                              std::to_string(static_cast<int>(outputs.error())));
  return std::move(outputs.get());
}

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (char letter : text) {
    if (letter == '"' || letter == '\\') out += '\\';
    if (static_cast<uint8_t>(letter) >= ' ') out += letter;
  }
  return out + "\"";
}

std::string shown(const std::vector<EValue>& values, const std::vector<std::string>& names) {
  if (values.size() != names.size()) throw std::runtime_error("the model has another number of outputs than its manifest");
  std::stringstream out;
  for (size_t i = 0; i < values.size(); i++) {
    auto tensor = values[i].toTensor();
    const DType* known = nullptr;
    for (const DType& each : kDTypes) known = tensor.scalar_type() == each.type ? &each : known;
    if (!known) throw std::runtime_error("output " + names[i] + " has a dtype that the wire does not carry");
    out << (i ? ", " : "") << quoted(names[i]) << ": {\"dtype\": \"" << known->name << "\", \"shape\": [";
    for (ssize_t axis = 0; axis < tensor.dim(); axis++) out << (axis ? ", " : "") << tensor.size(axis);
    out << "], \"data\": \"" << encode(static_cast<const uint8_t*>(tensor.const_data_ptr()), tensor.nbytes()) << "\"}";
  }
  return out.str();
}

std::string first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

// What follows `key` and a colon in a file of such lines.
std::string entry(const std::string& path, const std::string& key) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    size_t colon = line.find(':');
    if (line.rfind(key, 0) == 0 && colon != line.npos) return line.substr(std::min(line.find_first_not_of(" \t", colon + 1), line.size()));
  }
  return "";
}

std::string number(const std::string& text, double scale) {
  return text.empty() ? "null" : std::to_string(std::atof(text.c_str()) * scale);
}

std::string state() {
  const std::string frequency = "/sys/devices/system/cpu/cpu0/cpufreq/scaling_";
  std::string governor = first_line(frequency + "governor"), cpu = entry("/proc/cpuinfo", "Model");
  utsname name;
  uname(&name);
  bool emulated = access("/etc/edgekit-emulated", F_OK) == 0 || std::getenv("QEMU_CPU");
  std::stringstream out;
  out << "{\"machine\": " << quoted(name.machine) << ", \"system\": " << quoted(std::string(name.sysname) + " " + name.release)
      << ", \"cpu\": " << (cpu.empty() ? "null" : quoted(cpu)) << ", \"cores\": " << std::thread::hardware_concurrency()
      << ", \"python\": \"none\", \"governor\": " << (governor.empty() ? "null" : quoted(governor))
      << ", \"clock_min_hz\": " << number(first_line(frequency + "min_freq"), 1e3)
      << ", \"clock_max_hz\": " << number(first_line(frequency + "max_freq"), 1e3)
      << ", \"clock_now_hz\": " << number(first_line(frequency + "cur_freq"), 1e3)
      << ", \"temperature_c\": " << number(first_line("/sys/class/thermal/thermal_zone0/temp"), 1e-3)
      << ", \"emulated\": " << (emulated ? "true" : "false") << "}";
  return out.str();
}

double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

void answer(Module& model, const Feeds& sample, const std::vector<std::string>& outputs, const std::string& line) {
  if (line.find("{\"calls\": ") == 0) {
    std::vector<double> times;
    for (int left = std::atoi(line.c_str() + 10); left > 0; left--) {
      double before = seconds();
      call(model, sample);
      times.push_back(seconds() - before);
    }
    std::cout << "{\"times_s\": [";
    for (size_t i = 0; i < times.size(); i++) std::cout << (i ? ", " : "") << times[i];
    std::cout << "]}" << std::endl;
  } else if (line.find("{\"feeds\": ") == 0) {
    Feeds feeds = parse(line);
    double before = seconds();
    std::vector<EValue> values = call(model, feeds);
    double after = seconds();
    std::cout << "{\"time_s\": " << after - before << ", \"outputs\": {" << shown(values, outputs) << "}}" << std::endl;
  } else if (line.find("{\"energy\": ") == 0) {
    std::cout << "{\"energy\": {\"provenance\": \"unavailable\", \"reason\": \"the native runner reads no meter\"}}" << std::endl;
  } else {
    throw std::runtime_error("the native runner does not know this question");
  }
}

void serve(char** arguments, int count) {
  std::vector<std::string> outputs(arguments + 4, arguments + count);
  Feeds sample = parse(first_line(arguments[3]));
  executorch::extension::threadpool::get_threadpool()->_unsafe_reset_threadpool(std::atoi(arguments[2]));
  double start = seconds();
  Module model(arguments[1], Module::LoadMode::File);
  if (Error error = model.load_forward(); error != Error::Ok)
    throw std::runtime_error("executorch cannot load the model: error " + std::to_string(static_cast<int>(error)));
  double loaded = seconds();
  call(model, sample);
  double first = seconds();
  std::cout.precision(9);
  std::cout << "{\"load_s\": " << loaded - start << ", \"first_run_s\": " << first - loaded
            << ", \"runtime_version\": \"" EXECUTORCH_VERSION "\", \"state\": " << state() << "}" << std::endl;
  for (std::string line; std::getline(std::cin, line);) answer(model, sample, outputs, line);
  long peak = std::atol(entry("/proc/self/status", "VmHWM").c_str()) * 1024;
  std::cout << "{\"peak_rss_bytes\": " << peak << ", \"state\": " << state() << "}" << std::endl;
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 5) {
    std::cerr << "usage: worker MODEL.pte THREADS FEEDS.json OUTPUT...\n";
    return 2;
  }
  try {
    serve(arguments, count);
  } catch (const std::exception& error) {
    std::cout << "{\"error\": " << quoted(error.what()) << ", \"type\": \"InvalidInput\"}" << std::endl;
    return 1;
  }
}
